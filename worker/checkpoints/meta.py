"""The meta file beside the weights: `meta_XXXXXX.json`, as nanochat's trainers write it."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from worker.checkpoints.errors import CheckpointError

#: Keys of the last evaluation, in the order in which they are looked for: bits per byte, nats per token.
_LOSSES = ("val_bpb", "val_loss")
_SIZES = ("sequence_len", "vocab_size", "n_layer", "n_head", "n_kv_head", "n_embd")
#: No model that this program can hold exceeds it in any dimension; a larger number is a damaged file.
_LARGEST = 1 << 24


@dataclass(frozen=True, slots=True, kw_only=True)
class Meta:
    """What a meta file says, validated."""

    #: `sequence_len`, `vocab_size`, `n_layer`, `n_head`, `n_kv_head`, `n_embd`.
    sizes: dict[str, int]
    #: None where the file has none.
    window_pattern: str | None
    #: The last evaluation; None where there was none, or it was not finite.
    loss: float | None
    #: `val_bpb` or `val_loss`; None with `loss`.
    loss_name: str | None


def read(path: Path) -> Meta:
    """Read a meta file. Raises CheckpointError."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(path, f"cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise CheckpointError(path, f"is no JSON: {error}") from error
    if not isinstance(content, dict) or not isinstance(content.get("model_config"), dict):
        raise CheckpointError(path, "has no object `model_config`, which says the model's shape")
    config: dict[str, Any] = content["model_config"]
    if "num_experts" in config:
        raise CheckpointError(
            path, "is of a mixture of experts, which is not supported: `model_config` has num_experts"
        )
    sizes = {name: _size(path, config, name) for name in _SIZES}
    _check_heads(path, sizes)
    loss_name = next((name for name in _LOSSES if _finite(content.get(name))), None)
    return Meta(
        sizes=sizes,
        window_pattern=_pattern(path, config),
        loss=None if loss_name is None else float(content[loss_name]),
        loss_name=loss_name,
    )


def _size(path: Path, config: dict[str, Any], name: str) -> int:
    value = config.get(name)
    if type(value) is not int or not 1 <= value <= _LARGEST:
        raise CheckpointError(path, f"`model_config.{name}` must be a whole number from 1 to {_LARGEST}, not {value!r}")
    return value


def _check_heads(path: Path, sizes: dict[str, int]) -> None:
    n_embd, n_head, n_kv_head = sizes["n_embd"], sizes["n_head"], sizes["n_kv_head"]
    if n_embd % n_head or (n_embd // n_head) % 2:
        raise CheckpointError(path, f"n_embd {n_embd} does not give {n_head} heads (n_head) an even number of channels")
    if n_head % n_kv_head:
        raise CheckpointError(path, f"n_head {n_head} is no multiple of n_kv_head {n_kv_head}")


def _pattern(path: Path, config: dict[str, Any]) -> str | None:
    pattern = config.get("window_pattern")
    if pattern is None:
        return None
    if not isinstance(pattern, str) or not pattern or set(pattern.upper()) - set("SL"):
        raise CheckpointError(path, f"`model_config.window_pattern` must be letters S and L, not {pattern!r}")
    return pattern.upper()


def _finite(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
