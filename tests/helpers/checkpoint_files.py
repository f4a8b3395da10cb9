"""Writes small checkpoints of every era with random weights."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from worker.engine.architecture.era import ERAS

#: The shape of the checkpoints, as in a meta file. The widest gate needs 48 channels.
SIZES = {"sequence_len": 128, "vocab_size": 40, "n_layer": 3, "n_head": 4, "n_kv_head": 2, "n_embd": 48}
ROWS = 64


def state_dict(era: str = "E1b", *, rows: int = ROWS, seed: int = 0, **sizes: int) -> dict[str, Tensor]:
    """Random weights by nanochat's names. `sizes` replaces some of `SIZES`."""
    shape = SIZES | sizes
    width, layers = shape["n_embd"], shape["n_layer"]
    kv = width // shape["n_head"] * shape["n_kv_head"]
    era_data = ERAS[era]
    shapes: dict[str, tuple[int, ...]] = {"transformer.wte.weight": (rows, width), "lm_head.weight": (rows, width)}
    for i in range(layers):
        attention, mlp = f"transformer.h.{i}.attn", f"transformer.h.{i}.mlp"
        shapes |= {f"{attention}.c_q.weight": (width, width), f"{attention}.c_proj.weight": (width, width)}
        shapes |= {f"{attention}.c_k.weight": (kv, width), f"{attention}.c_v.weight": (kv, width)}
        shapes |= {f"{mlp}.c_fc.weight": (4 * width, width), f"{mlp}.c_proj.weight": (width, 4 * width)}
        if era_data.gate_width and (layers - 1 - i) % 2 == 0:
            shapes[f"value_embeds.{i}.weight"] = (rows, kv)
            shapes[f"{attention}.ve_gate.weight"] = (shape["n_kv_head"], era_data.gate_width)
    if era not in ("E1a", "E1b"):
        shapes |= {"resid_lambdas": (layers,), "x0_lambdas": (layers,)}
    if era == "E7":
        shapes |= {"smear_gate.weight": (1, 24), "smear_lambda": (1,), "backout_lambda": (1,)}
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) * 0.1 for name, shape in shapes.items()}


def meta(era: str = "E1b", **fields: Any) -> dict[str, Any]:
    """The content of a meta file. Sizes and `window_pattern` go into `model_config`, other fields to the top level."""
    config: dict[str, Any] = dict(SIZES)
    if era not in ("E1a", "E1b", "E2"):
        config["window_pattern"] = "SSL"
    config |= {name: value for name, value in fields.items() if name in SIZES or name == "window_pattern"}
    top = {name: value for name, value in fields.items() if name not in config}
    return {"step": 7, "val_bpb": 0.5, "model_config": config} | top


def write(folder: Path, weights: object = None, content: object = None, *, era: str = "E1b", step: int = 7) -> Path:
    """Write a checkpoint of `era`. `weights` and `content` (of the meta file) replace its own. Returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(state_dict(era) if weights is None else weights, folder / f"model_{step:06d}.pt")
    (folder / f"meta_{step:06d}.json").write_text(json.dumps(meta(era) if content is None else content))
    return folder


def write_with_index(folder: Path, index: bytes) -> Path:
    """Write a checkpoint whose weights file has this pickle as its index. Returns the folder."""
    file = write(folder) / "model_000007.pt"
    with zipfile.ZipFile(file) as archive:
        content = {info.filename: archive.read(info) for info in archive.infolist()}
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in content.items():
            archive.writestr(name, index if name.endswith("/data.pkl") else data)
    return folder
