"""The models that benchmarks measure: checkpoints, and random weights of any shape."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from bench.options import shape_config
from bench.random_weights import random_weights
from worker.checkpoints import formats
from worker.checkpoints.folder import find
from worker.engine.architecture.config import ModelConfig


@dataclass(frozen=True, slots=True)
class Source:
    """A model that can be loaded: a checkpoint, or random weights."""

    name: str
    config: ModelConfig
    weights: Mapping[str, Tensor]
    #: With what a peer loads the same model: `shape`, `files` or `folder` of a `load` request.
    peer_fields: dict[str, Any]


def source_of(shape: str | None, checkpoint: str) -> Source:
    """Return random weights of `shape`, or the checkpoint if there is no shape. Raises CheckpointError."""
    if shape:
        config = shape_config(shape)
        weights = random_weights(config.n_layer, config.n_embd, config.vocab_size)
        sizes = [config.n_layer, config.n_embd, config.n_head, config.vocab_size]
        return Source(shape, config, weights, {"shape": sizes})
    found = formats.load(find(checkpoint, Path()))
    folder = found.folder
    if found.config.era is None:
        fields: dict[str, Any] = {"folder": str(folder.path)}
    else:
        fields = {"files": {"meta": str(folder.meta_file), "model": str(folder.model_file)}}
    return Source(folder.name, found.config, found.weights, fields)
