"""Writes a checkpoint with random weights, for processes that load one from a folder."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from bench.random_weights import CONTEXT, random_weights


def write_checkpoint(folder: Path, shape: str) -> Path:
    """Write a checkpoint of era E1 into `folder` and return the folder.

    `shape` is `L,D,H,V`: number of layers, width, heads and ids. The last id is BOS; the other ids are characters,
    starting at the space.
    """
    layers, width, heads, vocab_size = (int(size) for size in shape.split(","))
    sizes = {"sequence_len": CONTEXT, "vocab_size": vocab_size, "n_layer": layers, "n_head": heads, "n_kv_head": heads}
    characters = [chr(ord(" ") + i) for i in range(vocab_size - 1)]
    torch.save(random_weights(layers, width, vocab_size), folder / "model_000000.pt")
    (folder / "meta_000000.json").write_text(json.dumps({"model_config": {**sizes, "n_embd": width}}))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"vocab_chars": characters, "special_tokens": ["<|bos|>"], "vocab_size": vocab_size})
    )
    return folder
