"""The `Prefer` request header (RFC 7240): how the caller wants to wait."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_QUOTED = r'"(?:[^"\\]|\\.)*"'
#: name, and behind `=` a token or a quoted string; parameters of a preference follow in further parts.
_PREFERENCE = re.compile(rf"\s*({_TOKEN})(?:\s*=\s*({_TOKEN}|{_QUOTED})?)?\s*")
#: More digits than any wait that we grant.
_MAX_DIGITS = 9


@dataclass(frozen=True, slots=True)
class Preferences:
    """What we understand of the header; everything else in it is ignored, as the RFC says."""

    #: `wait=N` in seconds.
    wait_s: int | None = None
    respond_async: bool = False

    @property
    def given(self) -> bool:
        """Whether the caller said how to wait, and so agreed to an answer of 202."""
        return self.wait_s is not None or self.respond_async

    def patience_s(self, *, default: float | None, longest: float) -> float | None:
        """How long to wait for the answer; None: not at all. `default` is for a caller who says nothing."""
        if self.wait_s is not None:
            return min(float(self.wait_s), longest)
        return None if self.respond_async else default

    def applied(self, *, waited_s: float | None, answered_async: bool) -> str:
        """The value of `Preference-Applied`; empty where no preference was followed."""
        names = []
        if self.respond_async and answered_async:
            names.append("respond-async")
        if self.wait_s is not None and waited_s is not None:
            names.append(f"wait={waited_s:g}")
        return ", ".join(names)


def parse_prefer(lines: Iterable[str]) -> Preferences:
    """The preferences in the given header lines. Of a preference that is named twice the first counts."""
    known: dict[str, str] = {}
    for line in lines:
        for preference in _split(line, ","):
            head, *_parameters = _split(preference, ";")
            match = _PREFERENCE.fullmatch(head)
            if match is not None:
                known.setdefault(match[1].lower(), _unquote(match[2] or ""))
    return Preferences(wait_s=_seconds(known.get("wait")), respond_async=known.get("respond-async") == "")


def _seconds(value: str | None) -> int | None:
    if value is None or not (value.isascii() and value.isdigit()):
        return None
    return int(value) if len(value) <= _MAX_DIGITS else 10**_MAX_DIGITS


def _split(text: str, separator: str) -> Sequence[str]:
    """`text` cut at each `separator` that does not stand inside a quoted string."""

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
    return re.sub(r"\\(.)", r"\1", word[1:-1]) if word.startswith('"') else word
