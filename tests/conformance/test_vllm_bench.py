"""`vllm bench serve` against a real server, where it is installed; and its rules on the bytes of real streams."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.conformance.conftest import Server
from tests.conformance.tokenizer_folder import exported
from tests.helpers.vllm_messages import vllm_messages

pytestmark = pytest.mark.slow

REQUESTS = 8
#: It asks with these fields, and sends messages whose content is a list of parts.
FIELDS = {
    "max_tokens": 30,
    "temperature": 1.0,
    "repetition_penalty": 1.0,
    "stream": True,
    "stream_options": {"include_usage": True},
    "ignore_eos": True,
}
CALLS: dict[str, dict[str, Any]] = {
    "/v1/completions": {"prompt": "the sum", "logprobs": None},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": [{"type": "text", "text": "the sum"}]}]},
}


@pytest.mark.parametrize("route", CALLS)
@pytest.mark.parametrize("size", [7, None], ids=str)
def test_its_rules(server: Server, route: str, size: int | None) -> None:
    """Its HTTP library gives it line after line, in whatever parts of `size` bytes they arrive."""
    body = {"model": server.chat.name, **CALLS[route], **FIELDS}
    with httpx.stream("POST", server.url + route, json=body, headers={"x-request-id": "bench-1"}) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        parts = [*answer.iter_raw(size)]
    lines = re.findall(rb"[^\n]*\n", b"".join(parts))
    messages = vllm_messages(lines)
    assert all(message.startswith("data: ") for message in messages)
    *chunks, counts, done = [message.removeprefix("data: ") for message in messages]
    assert done == "[DONE]"
    found = [json.loads(chunk) for chunk in chunks]
    # It counts a request as failed that has no chunk with choices, and reads `usage` only from a chunk without.
    assert all(chunk["choices"] for chunk in found)
    assert json.loads(counts)["choices"] == []
    assert json.loads(counts)["usage"]["completion_tokens"] == FIELDS["max_tokens"]


@pytest.mark.parametrize("backend", ["openai", "openai-chat"])
def test_a_benchmark(server: Server, tmp_path: Path, backend: str) -> None:
    program = shutil.which("vllm")
    if program is None:
        pytest.skip("vllm is not installed")
    route = "/v1/completions" if backend == "openai" else "/v1/chat/completions"
    command = [
        *(program, "bench", "serve", "--backend", backend, "--base-url", server.url, "--endpoint", route),
        *("--model", server.chat.name, "--tokenizer", str(exported(server.chat, tmp_path / "tokenizer"))),
        *("--dataset-name", "random", "--random-input-len", "20", "--random-output-len", "10"),
        *("--num-prompts", str(REQUESTS), "--ignore-eos", "--save-result", "--result-dir", str(tmp_path)),
        *("--result-filename", "result.json"),
    ]
    subprocess.run(command, check=True, timeout=300)
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["completed"] == REQUESTS
    assert result["total_output_tokens"] == REQUESTS * 10
