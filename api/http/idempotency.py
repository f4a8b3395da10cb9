"""The `Idempotency-Key` request header: a request that is sent twice makes one job."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from api.http.problems import invalid
from tasks.store.job_store import Idempotency

#: Longest key, in characters.
MAX_KEY = 255

#: A Structured Field string (RFC 8941) with whatever parameters, or the bare token that many clients send.
_STRING = re.compile(r'"((?:[\x20-\x21\x23-\x5b\x5d-\x7e]|\\["\\])*)"\s*(?:;.*)?')
_BARE = re.compile(r"[\x21\x23-\x7e]+")


def idempotency(lines: Sequence[str], *, owner: str, route: str, request: Mapping[str, Any]) -> Idempotency | None:
    """Key and fingerprint of a request; None where it has no key.

    The key counts for one owner and one kind of route. `request` is what was asked for, validated and with defaults
    filled in, so that two spellings of the same request are the same. Raises ApiError on a malformed key.
    """
    if not lines:
        return None
    key = parse_key(lines)
    scope = "\0".join((owner, route, key))
    canonical = json.dumps(request, sort_keys=True, separators=(",", ":"))
    return Idempotency(
        key_hash=hashlib.sha256(scope.encode()).hexdigest(), fingerprint=hashlib.sha256(canonical.encode()).hexdigest()
    )


def parse_key(lines: Sequence[str]) -> str:
    """The key in the given header lines. Raises ApiError."""
    if len(lines) > 1:
        raise _malformed("Send one Idempotency-Key, not several.", lines)
    value = lines[0].strip()
    if (match := _STRING.fullmatch(value)) is not None:
        key = re.sub(r"\\(.)", r"\1", match[1])
    elif _BARE.fullmatch(value):
        key = value
    else:
        raise _malformed(
            'An Idempotency-Key is a quoted string of visible ASCII characters, such as "8e03978e".', value
        )
    if not 1 <= len(key) <= MAX_KEY:
        raise _malformed(f"An Idempotency-Key has 1 to {MAX_KEY} characters.", value)
    return key


def _malformed(message: str, given: object) -> Exception:
    return invalid(("header", "idempotency-key"), message, "idempotency_key", given=given)
