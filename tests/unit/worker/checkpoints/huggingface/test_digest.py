"""The digest of a card: equal for equal models, however their files are cut, and different for all others."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.helpers.huggingface_folders import (
    CONFIG,
    GOLDEN_HF,
    changed,
    copied,
    in_one_file,
    opened,
    stored,
)
from worker.checkpoints.errors import CheckpointError
from worker.checkpoints.folder import find
from worker.checkpoints.huggingface import digest
from worker.local import describe


def digest_of(folder: Path) -> str:
    return describe(str(folder), folder.parent, softcap=None, form="exact").card.digest


def one_weight(folder: Path) -> None:
    tensors = stored(folder)
    tensors["model.layers.3.mlp.up_proj.weight"][5, 7] += 1e-2
    in_one_file(folder, tensors)


def swapped(folder: Path) -> None:
    tensors = stored(folder)
    first, second = (f"model.layers.{layer}.self_attn.q_proj.weight" for layer in (0, 1))
    tensors[first], tensors[second] = tensors[second], tensors[first]
    in_one_file(folder, tensors)


def another_type(folder: Path) -> None:
    tensors = stored(folder)
    in_one_file(folder, {name: tensor.float() for name, tensor in tensors.items()})


def tokenizer(folder: Path) -> None:
    content = json.loads((folder / "tokenizer.json").read_text())
    content["model"]["merges"].pop()
    (folder / "tokenizer.json").write_text(json.dumps(content))


@pytest.mark.parametrize(
    "change",
    [
        one_weight,
        swapped,
        another_type,
        tokenizer,
        lambda folder: changed(folder / CONFIG, rms_norm_eps=1e-6),
        lambda folder: changed(folder / CONFIG, max_position_embeddings=256),
        lambda folder: changed(folder / CONFIG, hidden_act="gelu"),
        lambda folder: changed(folder / CONFIG, rope_parameters={"rope_type": "default", "rope_theta": 500000.0}),
        lambda folder: changed(folder / CONFIG, model_type="mistral", sliding_window=8),
    ],
)
def test_everything_that_changes_an_answer_changes_the_digest(tmp_path: Path, change: Callable[[Path], None]) -> None:
    folder = copied("llama", tmp_path / "llama")
    before = digest_of(folder)
    assert before == digest_of(GOLDEN_HF / "llama")
    change(folder)
    assert digest_of(folder) != before


def test_neither_the_files_nor_harmless_keys_change_the_digest(tmp_path: Path) -> None:
    folder = copied("llama", tmp_path / "llama", use_cache=False, transformers_version="4.0.0")
    tensors = stored(folder)
    in_one_file(folder, dict(reversed(tensors.items())))
    assert digest_of(folder) == digest_of(GOLDEN_HF / "llama")
    old = {"rope_parameters": None, "rope_theta": 500000.0, "torch_dtype": "bfloat16"}
    rope = json.loads((GOLDEN_HF / "llama" / CONFIG).read_text())["rope_parameters"]
    changed(folder / CONFIG, **old, rope_scaling={key: rope[key] for key in rope if key != "rope_theta"})
    assert digest_of(folder) == digest_of(GOLDEN_HF / "llama")


def test_what_is_not_used_does_not_change_the_digest(tmp_path: Path) -> None:
    tensors = stored(GOLDEN_HF / "llama") | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)}
    assert digest_of(in_one_file(copied("llama", tmp_path / "llama"), tensors)) == digest_of(GOLDEN_HF / "llama")


@pytest.mark.parametrize("piece", [1000, 4 << 20])
def test_every_byte_counts_in_pieces_too(tmp_path: Path, piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digest, "_PIECE", piece)
    folder = in_one_file(copied("llama", tmp_path / "llama"), stored(GOLDEN_HF / "llama"))
    digests = set()
    file = folder / "model.safetensors"
    data = file.read_bytes()
    for place in (len(data) - 1, len(data) - piece % len(data) - 1, len(data) // 2):
        file.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        digests.add(opened(folder).weights.digest())
    assert len(digests) == 3


def test_a_file_is_read_once_while_it_does_not_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = in_one_file(copied("llama", tmp_path / "llama"), stored(GOLDEN_HF / "llama"))
    first = opened(folder).weights.digest()
    reads: list[str] = []
    read = digest._piece_digest
    monkeypatch.setattr(digest, "_piece_digest", lambda piece: (reads.append(piece[1].name), read(piece))[1])
    assert opened(folder).weights.digest() == first
    assert reads == []
    os.utime(folder / "model.safetensors", ns=(0, 1))
    assert opened(folder).weights.digest() == first
    assert sorted(reads) == sorted(stored(folder))


def test_a_file_that_is_cut_off_meanwhile_is_a_sentence(tmp_path: Path) -> None:
    folder = in_one_file(copied("llama", tmp_path / "llama"), stored(GOLDEN_HF / "llama"))
    found = opened(folder)
    os.truncate(folder / "model.safetensors", 10_000)
    with pytest.raises(CheckpointError, match="was cut off while it was read"):
        found.weights.digest()


def test_the_card_of_a_folder() -> None:
    card = describe("qwen2", GOLDEN_HF, softcap=None, form="exact").card
    assert (card.name, card.family, card.era, card.dtype) == ("qwen2", "qwen2", "", "bf16")
    assert (card.step, card.loss, card.loss_name, card.softcap) == (None, None, None, None)
    assert (card.n_layer, card.n_head, card.n_kv_head, card.n_embd) == (4, 4, 2, 64)
    assert (card.vocab_size, card.context) == (448, 512)
    # The head is the embedding, which counts once.
    parameters = sum(tensor.numel() for tensor in stored(GOLDEN_HF / "qwen2").values())
    assert (card.parameters, card.weight_bytes) == (parameters, 2 * parameters)
    assert find("qwen2", GOLDEN_HF).name == card.name
