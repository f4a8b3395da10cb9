"""The special tokens with which nanochat's models use a tool."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ToolIds:
    """The ids around the input and the output of a tool."""

    python_start: int
    python_end: int
    output_start: int
    output_end: int

    @classmethod
    def of(cls, special_ids: Mapping[str, int]) -> ToolIds | None:
        """The ids in a table of special tokens. None if one is missing."""
        names = ("<|python_start|>", "<|python_end|>", "<|output_start|>", "<|output_end|>")
        return cls(*(special_ids[name] for name in names)) if special_ids.keys() >= {*names} else None
