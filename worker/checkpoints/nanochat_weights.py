"""nanochat's weights file, `model_XXXXXX.pt`: loads it without running code, and checks every tensor.

The file is a state dict of the GPT class in nanochat/gpt.py (https://github.com/karpathy/nanochat). Its tensors show
which era of nanochat it is from.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path

from worker.checkpoints import meta
from worker.checkpoints.archive import Archive
from worker.checkpoints.checkpoint import Checkpoint
from worker.checkpoints.errors import CheckpointError, listed
from worker.checkpoints.folder import CheckpointFolder
from worker.checkpoints.meta import Meta
from worker.checkpoints.state_dict import read_state_dict
from worker.checkpoints.stored_weights import StoredTensor
from worker.engine.architecture.config import ModelConfig
from worker.engine.architecture.era import E1A, E1B, E2, E3, E4, E5, E6, E7, Era, nanochat_config
from worker.engine.architecture.tensors import shapes

#: The original guide's checkpoints have this many ids, and as many rows. They are of era E1b, although they do not have
#: the additional rows by which E1b usually differs from E1a.
_GUIDE_VOCAB_SIZE = 32


def load(folder: CheckpointFolder, *, softcap: float | None = None) -> Checkpoint:
    """Open the weights of a checkpoint, and check names, shapes and types. Raises CheckpointError.

    `softcap` replaces the era's.
    """
    found = meta.read(folder.meta_file)
    stored = read_state_dict(Archive(folder.model_file))
    weights = stored.tensors
    _refuse_unsupported(folder.model_file, weights)
    rows = _rows(folder.model_file, weights, found)
    era = _era(folder.model_file, weights, found, rows)
    if era is E4 and softcap == E5.softcap:
        era = E5
    pattern = found.window_pattern or "L"
    try:
        config = nanochat_config(
            era=era,
            rows=rows,
            window_pattern=pattern,
            softcap=softcap,
            **found.sizes,
        )
    except ValueError as error:
        raise CheckpointError(folder.meta_file, f"does not describe a model: {error}") from error
    _check(folder.model_file, weights, shapes(config))
    warnings = tuple(_warnings(folder, era, found, softcap))
    return Checkpoint(
        folder=folder,
        config=config,
        weights=stored,
        identity=_identity(config, era, pattern),
        loss=found.loss,
        loss_name=found.loss_name,
        warnings=warnings,
    )


def _warnings(folder: CheckpointFolder, era: Era, found: Meta, softcap: float | None) -> Iterator[str]:
    """Warnings about facts that the files do not contain and the operator may know."""
    if era.lambdas and found.window_pattern is None:
        yield (
            f"{folder.meta_file.name} has no window_pattern, so full attention is used. nanochat's mid-training and "
            "SFT of January 2026 omitted it for models trained with SSSL. If yours is one, add it to `model_config`."
        )
    if era is E4 and softcap is None:
        yield (
            f"{folder.model_file.name} may be of era E4 or E5, which have the same tensors. E4's softcap of "
            f"{E4.softcap:g} is used. If it was trained from 3 to 9 March 2026, set CELERIAC_SOFTCAP={E5.softcap:g}."
        )


def _rows(path: Path, weights: Mapping[str, StoredTensor], found: Meta) -> int:
    table = weights.get("transformer.wte.weight")
    if table is None or len(table.shape) != 2:
        raise CheckpointError(path, "has no matrix transformer.wte.weight, so it is not a nanochat GPT")
    rows, vocab_size = table.shape[0], found.sizes["vocab_size"]
    if rows < vocab_size:
        raise CheckpointError(
            path, f"its embedding has {rows} rows, fewer than vocab_size {vocab_size} of the meta file"
        )
    return rows


def _refuse_unsupported(path: Path, weights: Mapping[str, StoredTensor]) -> None:
    """Raise CheckpointError for architectures of nanochat that are not supported. The message names them."""
    if moe := next((name for name in weights if "mlp.experts." in name or "mlp.router." in name), None):
        raise CheckpointError(path, f"is a mixture of experts, which is not supported (tensor {moe})")
    if "v0_lambdas" in weights:
        raise CheckpointError(path, "has a development shape of value embeddings, which is not supported (v0_lambdas)")
    if any(name.startswith("bigram_") for name in weights):
        raise CheckpointError(path, "is of era E4x (bigram embeddings, January 2026), which is not supported")


def _era(path: Path, weights: Mapping[str, StoredTensor], found: Meta, rows: int) -> Era:
    """The era that has these tensors. E4 is returned for E5, too: they differ only by the softcap."""
    if "smear_gate.weight" in weights:
        return E7
    gate = weights.get(f"transformer.h.{found.sizes['n_layer'] - 1}.attn.ve_gate.weight")
    if gate is not None:
        by_width = {era.gate_width: era for era in (E4, E6)}
        if len(gate.shape) != 2 or gate.shape[1] not in by_width:
            raise CheckpointError(
                path, f"the gates of the value embeddings have shape {gate.shape}, which no known era has"
            )
        return by_width[gate.shape[1]]
    if "resid_lambdas" in weights:
        return E2 if found.window_pattern is None else E3
    vocab_size = found.sizes["vocab_size"]
    return E1B if rows > vocab_size or vocab_size == _GUIDE_VOCAB_SIZE else E1A


def _identity(config: ModelConfig, era: Era, pattern: str) -> str:
    """What determines the answers, beside the weights, as JSON.

    It has the fields that the description of a model had in the first versions: jobs wait under digests of them.
    """
    fields = {
        **{name: getattr(config, name) for name in ("sequence_len", "vocab_size", "rows")},
        **{name: getattr(config, name) for name in ("n_layer", "n_head", "n_kv_head", "n_embd")},
        "era": asdict(era),
        "softcap": config.softcap,
        "window_pattern": pattern,
        "windows": config.windows,
    }
    return json.dumps(fields, sort_keys=True)


def _check(path: Path, weights: Mapping[str, StoredTensor], shapes: dict[str, tuple[int, ...]]) -> None:
    if missing := [name for name in shapes if name not in weights]:
        raise CheckpointError(path, f"lacks tensors that its meta file requires: {listed(missing)}")
    if left_over := [name for name in weights if name not in shapes]:
        raise CheckpointError(path, f"has tensors that no known era has: {listed(left_over)}")
    for name, shape in shapes.items():
        if weights[name].shape != shape:
            raise CheckpointError(
                path, f"tensor {name} has shape {weights[name].shape}; its meta file requires {shape}"
            )
