"""Reads a checkpoint in any of the two forms: nanochat's own files, and folders of Hugging Face."""

from __future__ import annotations

import math

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
