"""The sizes that the files of a checkpoint state. Free of torch."""

from __future__ import annotations

from typing import NamedTuple

from worker.checkpoints import meta
from worker.checkpoints.folder import CheckpointFolder
from worker.checkpoints.huggingface import config


class Sizes(NamedTuple):
    """What a tokenizer must fit, and what clients are told."""

    vocab_size: int
    #: The longest sequence, prompt and answer together, in tokens.
    context: int


def sizes_of(folder: CheckpointFolder) -> Sizes:
    """The sizes in the file that describes the model. The weights are not opened. Raises CheckpointError."""
    if folder.format == "huggingface":
        return Sizes(*config.sizes(config.read(folder.meta_file)))
    found = meta.read(folder.meta_file).sizes
    return Sizes(found["vocab_size"], found["sequence_len"])
