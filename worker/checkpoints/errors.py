"""Errors of checkpoints. Each message names the file and the reason."""

from __future__ import annotations

from pathlib import Path

#: The longest reason, in characters. It may quote a file, which may contain anything.
_MAX_REASON = 1000


class CheckpointError(Exception):
    """A checkpoint cannot be used."""

    def __init__(self, where: Path | str, reason: str) -> None:
        """`where` is the file or folder, or the setting that is wrong. A long `reason` is cut."""
        super().__init__(f"{where}: {reason if len(reason) <= _MAX_REASON else f'{reason[:_MAX_REASON]}...'}")


class TokenizerError(CheckpointError):
    """The checkpoint's tokenizer is missing or cannot be used. The checkpoint itself can decode token ids."""
