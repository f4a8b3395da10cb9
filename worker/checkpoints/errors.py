"""Why a checkpoint cannot be used. Every message names the file and the reason, for people."""

from __future__ import annotations

from pathlib import Path


class CheckpointError(Exception):
    """A checkpoint, or a file that belongs to it, that cannot be used."""

    def __init__(self, where: Path | str, reason: str) -> None:
        super().__init__(f"{where}: {reason}")


class TokenizerError(CheckpointError):
    """The checkpoint's tokenizer is missing or cannot be used; its token ids still can."""
