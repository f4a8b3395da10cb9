"""Parsers of the request headers `Accept`, `Prefer`, `Cancel-After` and `Idempotency-Key`.

Their time grows linearly with the length of the header.
"""

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
_PREFERENCE = re.compile(rf"({_TOKEN})(?:\s*=(?:\s*({_TOKEN}|{_QUOTED}))?)?")
#: The parameter of a media range with its quality, from 0 to 1.
_QUALITY = re.compile(r"q\s*=\s*(0(?:\.\d{0,3})?|1(?:\.0{0,3})?)", re.ASCII)
_EVENT_STREAM = "text/event-stream"
#: The media ranges that include JSON. The first one that is given decides about JSON.
_JSON_RANGES = ("application/json", "application/*", "*/*")
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


def prefers_events(lines: Iterable[str]) -> bool:
    """Whether the lines of `Accept` ask for Server-Sent Events rather than JSON (RFC 9110, section 12.5.1).

    They do if `text/event-stream` is named, without a wildcard, and its quality is above 0 and at least that of JSON.
    At the same quality events win, because a client names JSON beside them for the errors.
    """
    qualities: dict[str, float] = {}
    for line in lines:
        for media_range in _split(line, ","):
            name, *parameters = (part.strip().lower() for part in _split(media_range, ";"))
            quality = _quality(parameters)
            if quality is not None:
                qualities[name] = max(quality, qualities.get(name, 0.0))
    events = qualities.get(_EVENT_STREAM, 0.0)
    json = next((qualities[name] for name in _JSON_RANGES if name in qualities), 0.0)
    return events > 0 and events >= json


def parse_prefer(lines: Iterable[str]) -> Preferences:
    """The preferences in all lines of the header. If a preference occurs twice, the first one counts."""
    known: dict[str, str] = {}
    for line in lines:
        for preference in _split(line, ","):
            head, *_parameters = _split(preference, ";")
            match = _PREFERENCE.fullmatch(head.strip())
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


def _quality(parameters: Sequence[str]) -> float | None:
    """The quality among the parameters of a media range; None if it is malformed, and so to ignore with its range."""
    for parameter in parameters:
        if parameter.partition("=")[0].rstrip() == "q":
            match = _QUALITY.fullmatch(parameter)
            return None if match is None else float(match[1])
    return 1.0


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
