"""A checkpoint's folder on disk: `step_NNNNNN/` with the model, its meta data and the vocabulary."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from data import CHARS, VOCAB_SIZE
from model import GPT, GPTConfig


def save(root: Path, model: GPT, meta: dict[str, Any]) -> Path:
    """Write the checkpoint of `meta["step"]` under root and return its folder."""
    name = f"{meta['step']:06d}"
    folder = root / f"step_{name}"
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {key: value.detach().clone().contiguous() for key, value in model.state_dict().items()}
    torch.save(tensors, folder / f"model_{name}.pt")
    _write_json(folder / f"meta_{name}.json", meta)
    vocabulary = {"vocab_chars": list(CHARS), "special_tokens": ["<|bos|>"], "vocab_size": VOCAB_SIZE}
    _write_json(folder / "tokenizer_config.json", vocabulary)
    return folder


def load(folder: Path) -> GPT:
    """The model of a folder that holds one checkpoint, ready to answer."""
    (model_path,) = folder.glob("model_*.pt")
    meta = json.loads((folder / f"{model_path.stem.replace('model', 'meta')}.json").read_text(encoding="utf-8"))
    model = GPT(GPTConfig(**meta["model_config"]))
    model.load_state_dict(torch.load(model_path, weights_only=True, mmap=True))
    return model.eval()


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
