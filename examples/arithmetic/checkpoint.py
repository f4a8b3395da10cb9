"""Reads and writes a checkpoint's folder: `step_NNNNNN/` with the weights, the meta file and the vocabulary."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from data import CHARS, VOCAB_SIZE
from model import GPT, GPTConfig


def save(root: Path, model: GPT, meta: dict[str, Any]) -> Path:
    """Write a checkpoint of step `meta["step"]` into the folder `root`. Returns the checkpoint's folder."""
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
    """Load the model from a folder with one checkpoint, in evaluation mode."""
    (model_path,) = folder.glob("model_*.pt")
    meta = json.loads((folder / f"{model_path.stem.replace('model', 'meta')}.json").read_text(encoding="utf-8"))
    model = GPT(GPTConfig(**meta["model_config"]))
    model.load_state_dict(torch.load(model_path, weights_only=True, mmap=True))
    return model.eval()


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
