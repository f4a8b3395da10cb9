"""Bytes of job streams, written by hand in the form that the API sends."""

from __future__ import annotations

import json
from typing import Any

from tests.helpers.job_objects import SUCCEEDED, job_object

#: The continuation, token by token. A token that is half a character has no text.
PIECES = ("5", "", "€", "9", "\n")
TEXT = "".join(PIECES)
DONE_JOB = job_object(SUCCEEDED, tokens=len(PIECES), completion=TEXT)
RETRY = b"retry: 2000\n\n"
KEEP_ALIVE = b": ka\n\n"


def event(name: str, data: Any, id_: str | None = None) -> bytes:
    """One event."""
    head = "" if id_ is None else f"id: {id_}\n"
    return f"event: {name}\n{head}data: {json.dumps(data, ensure_ascii=False)}\n\n".encode()


def status(value: str = "running", attempt: int = 1) -> bytes:
    """A `status` event."""
    return event("status", {"status": value, "attempt": attempt})


def queue(position: int, as_of: str = "2026-01-02T03:04:05.678Z", **more: Any) -> bytes:
    """A `queue` event."""
    known = {"tokens_ahead": 8 * position, "eta_start_s": None, "eta_finish_s": None}
    return event("queue", {"position": position, **known, **more, "as_of": as_of})


def tokens(begin: int, end: int) -> bytes:
    """A `token` event with the tokens from `begin` to `end`."""
    text = "".join(PIECES[begin:end])
    return event("token", {"offset": begin, "count": end - begin, "text": text}, f"{end}-0")


def done(job: dict[str, Any] = DONE_JOB) -> bytes:
    """The `done` event, which comes last."""
    return event("done", job, f"{len(PIECES)}-9")


def error(code: str, detail: str = "It failed.", status: int = 503) -> bytes:
    """A `problem` event."""
    problem = {"type": f"urn:celeriac:problem:{code}", "title": "T", "detail": detail, "retryable": True}
    return event("problem", {**problem, "status": status, "code": code})


def whole() -> bytes:
    """A whole stream."""
    return RETRY + status() + b"".join(tokens(at, at + 1) for at in range(len(PIECES))) + done()


def log_after(cursor: str | None) -> bytes:
    """The stream for a client that has read up to `cursor`: the current state, then the events after `cursor`."""
    seen = 0 if cursor is None else int(cursor.partition("-")[0])
    return RETRY + status() + b"".join(tokens(at, at + 1) for at in range(seen, len(PIECES))) + done()
