"""What `vllm bench serve` reads from a stream, by rules that are stricter than those of server-sent events."""

from __future__ import annotations

import json
from collections.abc import Iterable


def vllm_messages(parts: Iterable[bytes]) -> list[str]:
    """The messages of a stream as `vllm bench serve` finds them: it strips what arrives before it joins it."""
    buffer, messages = "", []
    for part in parts:
        text = part.strip().decode()
        if not text:
            continue
        buffer += text
        while "\n\n" in buffer:
            message, buffer = buffer.split("\n\n", 1)
            messages.append(message.strip())
        if buffer.startswith("data: "):
            content = buffer.removeprefix("data: ").strip()
            try:
                if content != "[DONE]":
                    json.loads(content)
            except json.JSONDecodeError:
                continue
            messages.append(buffer.strip())
            buffer = ""
    assert buffer == ""
    return [message for message in messages if not message.startswith(":")]
