"""Errors of checkpoints. Each message names the file and the reason."""

from __future__ import annotations

from pathlib import Path


class CheckpointError(Exception):
    """A checkpoint cannot be used."""

    def __init__(self, where: Path | str, reason: str) -> None:
        """`where` is the file or folder, or the setting that is wrong."""
        super().__init__(f"{where}: {reason}")


class TokenizerError(CheckpointError):
    """The checkpoint's tokenizer is missing or cannot be used. The checkpoint itself can decode token ids."""
