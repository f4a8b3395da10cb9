"""Items on Celery's list that are no messages of a job."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable
from typing import Any

#: Part of many of them. It must appear in no log.
SECRET = "s3cret-content"

#: Values of a wrong type, for every part of a message.
_WRONG: tuple[Any, ...] = (None, "", SECRET, 7, -1.5, True, [], [SECRET], {}, {SECRET: SECRET})


def bad_messages(good: str) -> dict[str, bytes]:
    """Bad messages by what is wrong with them. Many are changes of `good`, a message of a job."""
    bad = {
        "empty": b"",
        "text": SECRET.encode(),
        "binary": bytes(range(256)),
        "invalid UTF-8": good.encode().replace(b"generate", b"gener\xffte"),
        "cut": good.encode()[:-20],
        "two": (good + good).encode(),
        "deep": b"[" * 50_000,
        "huge": json.dumps({**json.loads(good), "more": SECRET * 10_000}).encode(),
        "pickle": b"\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00\x8c\x05hello\x94.",
        **{f"JSON {json.dumps(value)}": json.dumps(value).encode() for value in _WRONG},
    }
    for path in (
        *(("headers",), ("properties",), ("body",), ("content-type",), ("content-encoding",)),
        *(("headers", "id"), ("headers", "task"), ("properties", "body_encoding")),
    ):
        bad[f"no {path}"] = _changed(good, path, remove=True)
        for value in _WRONG:
            bad[f"{path} {json.dumps(value)}"] = _changed(good, path, value)
    for content_type in ("application/x-python-serialize", "application/x-yaml", "text/plain", "application/data"):
        bad[content_type] = _changed(good, ("content-type",), content_type)
    for encoding in ("binary", "utf-16", "rot13"):
        bad[encoding] = _changed(good, ("content-encoding",), encoding)
    bad["another task"] = _changed(good, ("headers", "task"), "celery.backend_cleanup")
    bad["another id"] = _changed(good, ("headers", "id"), "job_" + "0" * 25 + "\n")
    job_id = json.loads(good)["headers"]["id"]
    bodies: tuple[Any, ...] = (SECRET, [], [[]], [[job_id]], [[SECRET], {}, {}], [[job_id, SECRET], {}, {}])
    for body in (*bodies, [[job_id], {"x": SECRET}, {}]):
        bad[f"body {body}"] = _changed(good, ("body",), base64.b64encode(json.dumps(body).encode()).decode())
    bad["body that is not JSON"] = _changed(good, ("body",), base64.b64encode(SECRET.encode()).decode())
    bad["body with invalid UTF-8"] = _changed(good, ("body",), base64.b64encode(b"[[\xff]]").decode())
    bad["body that is a deep list"] = _changed(good, ("body",), base64.b64encode(b"[" * 20_000).decode())
    return bad


def _changed(good: str, path: Iterable[str], value: Any = None, *, remove: bool = False) -> bytes:
    """The message with another value, or without one."""
    message = json.loads(good)
    *outer, last = path
    part = message
    for name in outer:
        part = part[name]
    if remove:
        del part[last]
    else:
        part[last] = value
    return json.dumps(message).encode()
