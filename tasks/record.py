"""Reads the fields of a job's record, and finds the damaged ones.

`lua/prelude/damage.lua` has the same rules for the fields that the scripts use.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any, TypeVar, cast

from tasks.errors import RecordError

T = TypeVar("T")

#: Latest time in ms: the year 9999. Longest duration in ms: 3,000 years. Largest count: what a double holds exactly.
MOST_TIME_MS = 253_402_300_799_999
MOST_DURATION_MS = 10**14
MOST_COUNT = 2**53

_INTEGER = re.compile(r"-?[0-9]{1,16}")


class RecordFields:
    """The fields of one record. The methods never raise; `check` raises for all damaged fields at once.

    A method returns None for a damaged field, whatever its type says: do not use its result before `check`.
    """

    def __init__(self, job_id: str, fields: Mapping[bytes, bytes]) -> None:
        self._job_id = job_id
        self._fields = fields
        #: Names of damaged fields.
        self._damaged: list[str] = []

    def required(self, name: str, parse: Callable[[str], T]) -> T:
        """A field that each record has. `parse` raises ValueError or TypeError for a damaged value."""
        value = self.optional(name, parse)
        if value is None and name not in self._damaged:
            self._damaged.append(name)
        return cast(T, value)

    def optional(self, name: str, parse: Callable[[str], T]) -> T | None:
        """A field that a record may have; None if it does not."""
        raw = self._fields.get(name.encode())
        if raw is None:
            return None
        try:
            return parse(raw.decode())
        # A JSON text may be nested too deeply.
        except (ValueError, TypeError, RecursionError):
            self._damaged.append(name)
            return None

    def require(self, condition: bool, *names: str) -> None:
        """Count fields that are missing as damaged if `condition` is true."""
        if condition:
            self._damaged += [name for name in names if name.encode() not in self._fields and name not in self._damaged]

    def check(self) -> None:
        """Raises RecordError if a field that was read is damaged."""
        if self._damaged:
            raise RecordError(self._job_id, tuple(self._damaged))


def name(text: str) -> str:
    """A text that is not empty."""
    if not text:
        raise ValueError("empty")
    return text


def count(text: str) -> int:
    """A number of things."""
    return _whole(text, 0, MOST_COUNT)


def integer(text: str) -> int:
    """A whole number that may be negative."""
    return _whole(text, -MOST_COUNT, MOST_COUNT)


def priority(text: str) -> int:
    """The priority of a job."""
    return _whole(text, 0, 9)


def time_ms(text: str) -> int:
    """A time in ms since the Unix epoch."""
    return _whole(text, 0, MOST_TIME_MS)


def duration_ms(text: str) -> int:
    """A duration in ms."""
    return _whole(text, 0, MOST_DURATION_MS)


def json_texts(text: str) -> tuple[str, ...]:
    """A JSON list of texts."""
    return tuple(checked_text(item) for item in json_value(text, list))


def json_text_map(text: str) -> dict[str, str]:
    """A JSON object whose values are texts."""
    return {checked_text(key): checked_text(value) for key, value in json_value(text, dict).items()}


def json_value(text: str, kind: type[T]) -> T:
    """JSON of one type. Raises TypeError for another, and ValueError for what is no JSON."""
    value: Any = json.loads(text)
    if not isinstance(value, kind):
        raise TypeError(f"not a {kind.__name__}")
    return value


def checked_text(value: object) -> str:
    """A text without lone surrogates, which JSON may contain and UTF-8 may not. Raises ValueError or TypeError."""
    if not isinstance(value, str):
        raise TypeError("not a text")
    value.encode()
    return value


def _whole(text: str, least: int, most: int) -> int:
    if not _INTEGER.fullmatch(text) or not least <= int(text) <= most:
        raise ValueError("not a whole number within the limits")
    return int(text)
