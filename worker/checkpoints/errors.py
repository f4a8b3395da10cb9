"""Errors of checkpoints. Each message names the file and the reason."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

#: The largest number of names that a message lists.
_NAMED = 5
#: The longest reason, in characters. It may quote a file, which may contain anything.
_MAX_REASON = 1000


class CheckpointError(Exception):
    """A checkpoint cannot be used."""

    def __init__(self, where: Path | str, reason: str) -> None:
        """`where` is the file or folder, or the setting that is wrong. A long `reason` is cut."""
        super().__init__(f"{where}: {reason if len(reason) <= _MAX_REASON else f'{reason[:_MAX_REASON]}...'}")


class TokenizerError(CheckpointError):
    """The checkpoint's tokenizer is missing or cannot be used. The checkpoint itself can decode token ids."""


def listed(names: Iterable[str], most: int = _NAMED) -> str:
    """Names for a message: at most `most` of them, and how many more there are."""
    found = [*names]
    more = f" and {len(found) - most} more" if len(found) > most else ""
    return ", ".join(found[:most]) + more
