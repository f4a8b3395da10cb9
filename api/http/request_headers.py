"""Parsers of the request headers `Prefer`, `Cancel-After` and `Idempotency-Key`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from api.http.problems import ApiError, invalid
from api.schemas.generation import MAX_TIME_LIMIT_S

#: Longest idempotency key, in characters.
MAX_IDEMPOTENCY_KEY = 255

_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_QUOTED = r'"(?:[^"\\]|\\.)*"'
#: A preference without its parameters: a name, then optionally `=` with a token or a quoted string.
_PREFERENCE = re.compile(rf"\s*({_TOKEN})(?:\s*=\s*({_TOKEN}|{_QUOTED})?)?\s*")
#: A number with more digits is longer than any wait that the server grants.
_MAX_WAIT_DIGITS = 9
#: `90`, `90s`, `1m30s`, `1h`; a number without a unit is in seconds.
_DURATION = re.compile(r"(?:(\d{1,9})h)?(?:(\d{1,9})m)?(?:(\d{1,9}(?:\.\d{1,9})?)s)?|(\d{1,9}(?:\.\d{1,9})?)")
#: A Structured Field string (RFC 8941) with any parameters, or the token without quotes that many clients send.
_KEY_STRING = re.compile(r'"((?:[\x20-\x21\x23-\x5b\x5d-\x7e]|\\["\\])*)"\s*(?:;.*)?')
_KEY_TOKEN = re.compile(r"[\x21\x23-\x7e]+")


@dataclass(frozen=True, slots=True)
class Preferences:
    """The preferences in `Prefer` (RFC 7240) that the server supports. It ignores all others, as the RFC requires."""

    #: `wait=N` in seconds.
    wait_s: int | None = None
    respond_async: bool = False

    @property
    def given(self) -> bool:
        """Whether the caller said how to wait. Such a caller accepts 202 as an answer."""
        return self.wait_s is not None or self.respond_async

    def granted_wait_s(self, *, default: float | None, longest: float) -> float | None:
        """How long to wait for the job's end, in seconds; None: do not wait. `default` is used without preferences."""
        if self.wait_s is not None:
            return min(float(self.wait_s), longest)
        return None if self.respond_async else default

    def applied(self, *, waited_s: float | None, answered_async: bool) -> str:
        """The value of `Preference-Applied`; empty if no preference was applied."""
        names = []
        if self.respond_async and answered_async:
            names.append("respond-async")
        if self.wait_s is not None and waited_s is not None:
            names.append(f"wait={waited_s:g}")
        return ", ".join(names)


@dataclass(frozen=True, slots=True)
class SubmitHeaders:
    """The headers of a request that submits a generation."""

    preferences: Preferences
    #: The lines of `Idempotency-Key`, not parsed yet: errors in the body are reported before a malformed key.
    key_lines: Sequence[str]
    #: `Cancel-After` in seconds; None without the header.
    cancel_after_s: float | None


def parse_prefer(lines: Iterable[str]) -> Preferences:
    """The preferences in all lines of the header. If a preference occurs twice, the first one counts."""
    known: dict[str, str] = {}
    for line in lines:
        for preference in _split(line, ","):
            head, *_parameters = _split(preference, ";")
            match = _PREFERENCE.fullmatch(head)
            if match is not None:
                known.setdefault(match[1].lower(), _unquote(match[2] or ""))
    return Preferences(wait_s=_wait_s(known.get("wait")), respond_async=known.get("respond-async") == "")


def parse_cancel_after(value: str) -> float:
    """How long the whole job may take, in seconds. It means the same as `deadline_s` in a body. Raises ApiError."""
    text = value.strip().lower()
    match = _DURATION.fullmatch(text) if text.isascii() else None
    hours, minutes, seconds, bare = match.groups(default="0") if match else ("0",) * 4
    total_s = int(hours) * 3600 + int(minutes) * 60 + float(seconds) + float(bare)
    if not 0 < total_s <= MAX_TIME_LIMIT_S:
        raise invalid(
            ("header", "cancel-after"),
            f"Cancel-After is a duration such as 30s, 1m30s or 1h, above 0 and at most {MAX_TIME_LIMIT_S} s.",
            "cancel_after",
            given=value,
        )
    return total_s


def parse_idempotency_key(lines: Sequence[str]) -> str | None:
    """The key in all lines of the header; None without the header. Raises ApiError for a malformed key."""
    if not lines:
        return None
    if len(lines) > 1:
        raise _malformed_key("Send one Idempotency-Key, not several.", lines)
    value = lines[0].strip()
    if (match := _KEY_STRING.fullmatch(value)) is not None:
        key = _unescape(match[1])
    elif _KEY_TOKEN.fullmatch(value):
        key = value
    else:
        raise _malformed_key(
            'An Idempotency-Key is a quoted string of visible ASCII characters, such as "8e03978e".', value
        )
    if not 1 <= len(key) <= MAX_IDEMPOTENCY_KEY:
        raise _malformed_key(f"An Idempotency-Key has 1 to {MAX_IDEMPOTENCY_KEY} characters.", value)
    return key


def _malformed_key(message: str, given: object) -> ApiError:
    return invalid(("header", "idempotency-key"), message, "idempotency_key", given=given)


def _wait_s(value: str | None) -> int | None:
    if value is None or not (value.isascii() and value.isdigit()):
        return None
    return int(value) if len(value) <= _MAX_WAIT_DIGITS else 10**_MAX_WAIT_DIGITS


def _split(text: str, separator: str) -> Sequence[str]:
    """Split `text` at each `separator` that is not inside a quoted string."""

    def cuts() -> Iterator[int]:
        quoted = escaped = False
        for index, char in enumerate(text):
            if escaped:
                escaped = False
            elif quoted and char == "\\":
                escaped = True
            elif char == '"':
                quoted = not quoted
            elif char == separator and not quoted:
                yield index

    parts, start = [], 0
    for cut in cuts():
        parts.append(text[start:cut])
        start = cut + 1
    return [*parts, text[start:]]


def _unquote(word: str) -> str:
    return _unescape(word[1:-1]) if word.startswith('"') else word


def _unescape(text: str) -> str:
    return re.sub(r"\\(.)", r"\1", text)
