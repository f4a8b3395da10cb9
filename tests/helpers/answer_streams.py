"""Reads the chunk streams of OpenAI's API in threads, and joins their chunks to the answers that they are parts of."""

from __future__ import annotations

import json
import threading
from typing import Any

import httpx

#: Longest wait for the next bytes, in seconds.
DEADLINE_S = 120.0
_BLOCK_END = b"\n\n"
_DONE = "data: [DONE]\n\n"


class AnswerStreamReader:
    """A call whose answer is read as it comes. It starts at once."""

    def __init__(self, url: str, body: dict[str, Any], headers: dict[str, str] | None = None) -> None:
        """`url`: of the route. `body`: of a call that asks for a stream."""
        self.headers = httpx.Headers()
        self.status: int | None = None
        #: The error of a connection that broke; None if the answer is complete.
        self.broken: httpx.TransportError | None = None
        self._received = b""
        self._begun = threading.Event()
        self._thread = threading.Thread(target=self._read, args=(url, body, headers), daemon=True)
        self._thread.start()

    def _read(self, url: str, body: dict[str, Any], headers: dict[str, str] | None) -> None:
        try:
            with (
                httpx.Client(timeout=DEADLINE_S) as client,
                client.stream("POST", url, json=body, headers=headers) as answer,
            ):
                self.headers, self.status = answer.headers, answer.status_code
                self._begun.set()
                for part in answer.iter_raw():
                    self._received += part
        except httpx.TransportError as error:
            self.broken = error
        finally:
            self._begun.set()

    @property
    def job_id(self) -> str:
        """Id of the call's first job, when the answer has begun."""
        assert self._begun.wait(DEADLINE_S)
        assert self.status == httpx.codes.OK, (self.status, self.broken, self._received)
        return str(self.headers["x-job-id"])

    @property
    def text(self) -> str:
        """The whole blocks that have come so far."""
        return self._received[: self._received.rfind(_BLOCK_END) + len(_BLOCK_END)].decode()

    def wait(self) -> None:
        """Wait for the end, in order or not."""
        self._thread.join(DEADLINE_S)
        assert not self._thread.is_alive()

    def chunks(self) -> list[dict[str, Any]]:
        """The chunks of a complete stream. Fails if there is anything else in it."""
        self.wait()
        assert self.broken is None, self.broken
        assert self.text.endswith(_DONE)
        return self.parts()

    def parts(self) -> list[dict[str, Any]]:
        """The chunks that have come so far. Fails if there is anything else."""
        blocks = [line for line in self.text.removesuffix(_DONE).split("\n") if line]
        assert all(block.startswith("data: ") for block in blocks), blocks
        return [json.loads(block.removeprefix("data: ")) for block in blocks]


def joined(chunks: list[dict[str, Any]]) -> dict[str, Any]:
    """The answer that a stream with token counts is made of.

    Fails unless each choice has one role at its beginning (if it is a chat), one reason for its end, and nothing after
    that; and unless the token counts are in the last chunk alone.
    """
    *parts, last = chunks
    assert last["choices"] == []
    assert all(part["usage"] is None for part in parts)
    heads = [{name: part[name] for name in ("id", "created", "model", "system_fingerprint")} for part in chunks]
    assert heads == [heads[0]] * len(heads)
    found: dict[int, list[dict[str, Any]]] = {}
    for part in parts:
        for choice in part["choices"]:
            found.setdefault(choice["index"], []).append(choice)
    assert sorted(found) == list(range(len(found)))
    is_chat = chunks[0]["object"] == "chat.completion.chunk"
    join = _chat_choice if is_chat else _text_choice
    return {**heads[0], "choices": [join(found[index]) for index in sorted(found)], "usage": last["usage"]}


def _chat_choice(parts: list[dict[str, Any]]) -> dict[str, Any]:
    deltas = [part["delta"] for part in parts]
    assert deltas[0] == {"role": "assistant", "content": ""}
    assert not any("role" in delta for delta in deltas[1:])
    tokens = [token for part in parts if part["logprobs"] for token in part["logprobs"]["content"]]
    message = {"role": "assistant", "content": "".join(delta.get("content", "") for delta in deltas), "refusal": None}
    return {
        "index": parts[0]["index"],
        "message": message,
        "logprobs": {"content": tokens} if tokens else None,
        **_ending(parts),
    }


def _text_choice(parts: list[dict[str, Any]]) -> dict[str, Any]:
    logprobs: dict[str, list[Any]] = {}
    for part in parts:
        for name, values in (part["logprobs"] or {}).items():
            logprobs.setdefault(name, []).extend(values)
    return {
        "index": parts[0]["index"],
        "text": "".join(part["text"] for part in parts),
        "logprobs": logprobs or None,
        **_ending(parts),
    }


def _ending(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """The members that only the last chunk of a choice has."""
    assert [part["finish_reason"] is None for part in parts] == [True] * (len(parts) - 1) + [False]
    assert not any(part.get("celeriac") for part in parts[:-1])
    return {"finish_reason": parts[-1]["finish_reason"], "celeriac": parts[-1]["celeriac"]}
