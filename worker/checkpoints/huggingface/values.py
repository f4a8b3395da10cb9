"""The values of a `config.json`, each checked for its type when it is taken."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from worker.checkpoints.errors import CheckpointError
from worker.checkpoints.json_file import short


class Values:
    """The keys of a JSON object. A key that is missing, or null without being allowed to be, has a default."""

    def __init__(
        self, path: Path, content: Mapping[str, Any], defaults: Mapping[str, Any], *, within: str = ""
    ) -> None:
        """`within` is put before keys in messages: the name of the object in the file, with a dot."""
        self.path = path
        self.content = content
        self._defaults = defaults
        self._within = within

    def error(self, key: str, reason: str) -> CheckpointError:
        """An error that names the key."""
        return CheckpointError(self.path, f"`{self._within}{key}` {reason}")

    def get(self, key: str) -> Any:
        """The value as it is, or else the default; None without one."""
        return self.content.get(key, self._defaults.get(key))

    def integer(self, key: str, *, least: int = 1, most: int = 1 << 31) -> int:
        """An integer within two limits."""
        value = self.get(key)
        if type(value) is not int or not least <= value <= most:
            raise self._not(key, f"an integer from {least} to {most}")
        return value

    def number(self, key: str) -> float:
        """A finite number above 0."""
        value = self.get(key)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
            raise self._not(key, "a finite number above 0")
        try:
            return float(value)
        except OverflowError:
            raise self._not(key, "a finite number above 0") from None

    def optional_number(self, key: str) -> float | None:
        """A finite number above 0, or None."""
        return None if self.get(key) is None else self.number(key)

    def flag(self, key: str) -> bool:
        """True or false."""
        value = self.get(key)
        if not isinstance(value, bool):
            raise self._not(key, "true or false")
        return value

    def text(self, key: str) -> str:
        """A string."""
        value = self.get(key)
        if not isinstance(value, str):
            raise self._not(key, "a string")
        return value

    def optional_list(self, key: str, length: int) -> list[Any] | None:
        """The first `length` items of a list that has at least as many, or None."""
        value = self.get(key)
        if value is None:
            return None
        if not isinstance(value, list) or len(value) < length:
            raise self._not(key, f"a list with an item for each of the {length} layers")
        return value[:length]

    def inside(self, key: str) -> Values | None:
        """The object under a key, without defaults; None if there is none, or an empty one."""
        value = self.get(key)
        if value is None or value == {}:
            return None
        if not isinstance(value, dict):
            raise self._not(key, "an object")
        return Values(self.path, value, {}, within=f"{self._within}{key}.")

    def _not(self, key: str, expected: str) -> CheckpointError:
        if key not in self.content and key not in self._defaults:
            return self.error(key, f"is missing; {expected} is expected")
        return self.error(key, f"must be {expected}, not {short(self.get(key))}")
