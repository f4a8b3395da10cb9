"""Reads and writes a checkpoint's folder: the weights, the meta file and the tokenizer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import tiktoken
import tokenizer
import torch
from model import GPT, GPTConfig


def save(folder: Path, model: GPT, encoding: tiktoken.Encoding, meta: dict[str, Any]) -> None:
    """Write a checkpoint of step `meta["step"]`, and the tokenizer, into `folder`."""
    name = f"{meta['step']:06d}"
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {key: value.detach().clone().contiguous() for key, value in model.state_dict().items()}
    torch.save(tensors, folder / f"model_{name}.pt")
    (folder / f"meta_{name}.json").write_text(json.dumps(meta, indent=2) + "\n", encoding="utf-8")
    tokenizer.save(encoding, folder)


def load(folder: Path) -> tuple[GPT, tiktoken.Encoding]:
    """Load the newest checkpoint of a folder, in evaluation mode, and its tokenizer."""
    model_path = max(folder.glob("model_*.pt"), key=lambda path: int(path.stem.removeprefix("model_")))
    meta = json.loads((folder / f"{model_path.stem.replace('model', 'meta')}.json").read_text(encoding="utf-8"))
    model = GPT(GPTConfig(**meta["model_config"]))
    model.load_state_dict(torch.load(model_path, weights_only=True, mmap=True))
    return model.eval(), tokenizer.load(folder)
