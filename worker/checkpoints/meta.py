"""The meta file beside the weights, `meta_XXXXXX.json`.

nanochat's trainers write it: `save_checkpoint` in nanochat/checkpoint_manager.py
(https://github.com/karpathy/nanochat).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from worker.checkpoints.errors import CheckpointError
from worker.checkpoints.json_file import read_object, short
from worker.engine.architecture.config import LIMITS

#: Keys of the last evaluation, the preferred one first: bits per byte, nats per token.
_LOSSES = ("val_bpb", "val_loss")
_SIZES = ("sequence_len", "vocab_size", "n_layer", "n_head", "n_kv_head", "n_embd")


@dataclass(frozen=True, slots=True, kw_only=True)
class Meta:
    """The contents of a meta file. Each value is checked alone; `ModelConfig` checks whether they fit together."""

    #: `sequence_len`, `vocab_size`, `n_layer`, `n_head`, `n_kv_head`, `n_embd`.
    sizes: dict[str, int]
    #: None if the file has none.
    window_pattern: str | None
    #: The loss in the last evaluation. None if there was no evaluation, or the loss is not finite.
    loss: float | None
    #: `val_bpb` or `val_loss`. None if `loss` is None.
    loss_name: str | None


def read(path: Path) -> Meta:
    """Read a meta file. Raises CheckpointError."""
    content = read_object(path)
    config = content.get("model_config")
    if not isinstance(config, dict):
        raise CheckpointError(path, "has no object `model_config`, which has the shape of the model")
    if "num_experts" in config:
        raise CheckpointError(
            path, "belongs to a mixture of experts, which is not supported: `model_config` has num_experts"
        )
    loss_name = next((name for name in _LOSSES if _number(content.get(name)) is not None), None)
    return Meta(
        sizes={name: _size(path, config, name) for name in _SIZES},
        window_pattern=_pattern(path, config),
        loss=None if loss_name is None else _number(content[loss_name]),
        loss_name=loss_name,
    )


def _size(path: Path, config: dict[str, Any], name: str) -> int:
    if name not in config:
        raise CheckpointError(path, f"`model_config` lacks {name}")
    value = config[name]
    if type(value) is not int or not 1 <= value <= LIMITS[name]:
        raise CheckpointError(
            path, f"`model_config.{name}` must be an integer from 1 to {LIMITS[name]}, not {short(value)}"
        )
    return value


def _pattern(path: Path, config: dict[str, Any]) -> str | None:
    pattern = config.get("window_pattern")
    if pattern is None:
        return None
    if not isinstance(pattern, str) or not pattern or set(pattern.upper()) - set("SL"):
        raise CheckpointError(path, f"`model_config.window_pattern` must be letters S and L, not {short(pattern)}")
    return pattern.upper()


def _number(value: object) -> float | None:
    """A finite number, else None. Trainers write null, NaN or Infinity if there was no evaluation."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None
