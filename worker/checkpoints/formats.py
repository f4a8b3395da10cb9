"""Reads a checkpoint in any of the two forms: nanochat's own files, and folders of Hugging Face."""

from __future__ import annotations

import math
from dataclasses import replace

from worker.checkpoints import nanochat_weights
from worker.checkpoints.checkpoint import Checkpoint
from worker.checkpoints.errors import CheckpointError
from worker.checkpoints.folder import CheckpointFolder
from worker.checkpoints.huggingface import reader


def load(folder: CheckpointFolder, *, softcap: float | None = None) -> Checkpoint:
    """Open the weights of a checkpoint, and check names, shapes and types. Raises CheckpointError.

    `softcap` replaces that of a model of nanochat.
    """
    if softcap is not None and not 0 < softcap < math.inf:
        raise CheckpointError("softcap", f"must be a finite number above 0, not {softcap}")
    load_format = reader.load if folder.format == "huggingface" else nanochat_weights.load
    return load_format(folder, softcap=softcap)


def with_context(checkpoint: Checkpoint, context: int) -> Checkpoint:
    """The same checkpoint for sequences of at most `context` tokens, prompt and answer together.

    One with a shorter context stays as it is. The limit is part of the card's digest: no job is given to a worker that
    has less room than the one whose card it was accepted under.
    """
    if context >= checkpoint.config.sequence_len:
        return checkpoint
    return replace(
        checkpoint,
        config=replace(checkpoint.config, sequence_len=context),
        identity=f"{checkpoint.identity}, limited to {context} tokens",
    )
