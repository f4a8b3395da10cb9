"""The tensors of folders in Hugging Face's form: their names, their files, and what is refused."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.helpers.huggingface_folders import (
    CONFIG,
    FAMILIES,
    GOLDEN_HF,
    INDEX,
    WEIGHTS,
    copied,
    golden,
    in_one_file,
    opened,
    stored,
    with_header,
    write_safetensors,
)
from worker.checkpoints.errors import CheckpointError
from worker.checkpoints.folder import find
from worker.checkpoints.formats import load
from worker.engine.architecture.tensors import shapes

SHARD = "model-00001-of-00003.safetensors"


def refusal(folder: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        opened(folder)
    assert str(folder) in str(caught.value)
    return str(caught.value)


def index_changed(folder: Path, **files: Any) -> None:
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"] |= files
    (folder / INDEX).write_text(json.dumps(index))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_tensor_of_a_family_is_read_in_its_stored_type(family: str) -> None:
    found = golden(family)
    assert {name: tuple(tensor.shape) for name, tensor in found.weights.items()} == shapes(found.config)
    types = {tensor.dtype for tensor in stored(GOLDEN_HF / family).values()}
    assert {tensor.dtype for tensor in found.weights.values()} == types
    for name, info in found.weights.tensors.items():
        tensor = found.weights[name]
        assert (info.dtype, info.count, info.nbytes) == (tensor.dtype, tensor.numel(), tensor.nbytes)
    assert found.warnings == ()


def test_names_of_llama() -> None:
    found, there = golden("llama").weights, stored(GOLDEN_HF / "llama")
    names = {
        "transformer.wte.weight": "model.embed_tokens.weight",
        "lm_head.weight": "lm_head.weight",
        "transformer.ln_f.weight": "model.norm.weight",
        "transformer.h.2.ln_1.weight": "model.layers.2.input_layernorm.weight",
        "transformer.h.2.ln_2.weight": "model.layers.2.post_attention_layernorm.weight",
        "transformer.h.2.attn.c_q.weight": "model.layers.2.self_attn.q_proj.weight",
        "transformer.h.2.attn.c_k.weight": "model.layers.2.self_attn.k_proj.weight",
        "transformer.h.2.attn.c_v.weight": "model.layers.2.self_attn.v_proj.weight",
        "transformer.h.2.attn.c_proj.weight": "model.layers.2.self_attn.o_proj.weight",
        "transformer.h.2.mlp.c_gate.weight": "model.layers.2.mlp.gate_proj.weight",
        "transformer.h.2.mlp.c_fc.weight": "model.layers.2.mlp.up_proj.weight",
        "transformer.h.2.mlp.c_proj.weight": "model.layers.2.mlp.down_proj.weight",
    }
    for name, source in names.items():
        assert found[name].equal(there[source])


def test_gpt2_stores_three_matrices_in_one_and_all_of_them_turned() -> None:
    found, there = golden("gpt2").weights, stored(GOLDEN_HF / "gpt2")
    fused, bias = there["transformer.h.1.attn.c_attn.weight"], there["transformer.h.1.attn.c_attn.bias"]
    for part, name in enumerate(("c_q", "c_k", "c_v")):
        columns = slice(64 * part, 64 * (part + 1))
        assert found[f"transformer.h.1.attn.{name}.weight"].equal(fused[:, columns].t())
        assert found[f"transformer.h.1.attn.{name}.bias"].equal(bias[columns])
    for name in ("attn.c_proj", "mlp.c_fc", "mlp.c_proj"):
        assert found[f"transformer.h.1.{name}.weight"].equal(there[f"transformer.h.1.{name}.weight"].t())
    assert all(tensor.is_contiguous() for tensor in found.values())


@pytest.mark.parametrize("rows_at_once", [1, 3, 1000])
def test_a_matrix_is_turned_in_parts(rows_at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.checkpoints.huggingface.weights._PART", rows_at_once * 64 * 3 * 4)
    test_gpt2_stores_three_matrices_in_one_and_all_of_them_turned()


def same_weights(folder: Path, family: str) -> None:
    found, expected = opened(folder).weights, golden(family).weights
    assert found.keys() == expected.keys()
    assert all(tensor.equal(expected[name]) for name, tensor in found.items())


@pytest.mark.parametrize("family", ["gpt2", "qwen2"])
def test_a_folder_of_the_base_model_has_no_prefix(tmp_path: Path, family: str) -> None:
    """As the base class of transformers saves it, and OpenAI saved GPT-2."""
    prefix = {"gpt2": "transformer.", "qwen2": "model."}[family]
    tensors = {name.removeprefix(prefix): tensor for name, tensor in stored(GOLDEN_HF / family).items()}
    same_weights(in_one_file(copied(family, tmp_path / "base"), tensors), family)


def test_buffers_of_old_versions_are_ignored(tmp_path: Path) -> None:
    tensors = stored(GOLDEN_HF / "gpt2")
    for layer in range(4):
        tensors[f"transformer.h.{layer}.attn.bias"] = torch.ones(1, 1, 8, 8, dtype=torch.uint8)
        tensors[f"transformer.h.{layer}.attn.masked_bias"] = torch.tensor(-1e4)
    same_weights(in_one_file(copied("gpt2", tmp_path / "gpt2"), tensors), "gpt2")
    tensors = stored(GOLDEN_HF / "llama")
    tensors |= {f"model.layers.{layer}.self_attn.rotary_emb.inv_freq": torch.ones(8) for layer in range(4)}
    same_weights(in_one_file(copied("llama", tmp_path / "llama"), tensors), "llama")


# The head


def test_a_stored_head_that_equals_the_embedding_is_tied(tmp_path: Path) -> None:
    tensors = stored(GOLDEN_HF / "qwen2")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    folder = in_one_file(copied("qwen2", tmp_path / "qwen2"), tensors)
    assert opened(folder).config.tied_head
    same_weights(folder, "qwen2")


def test_a_head_in_place_of_the_embedding_is_both(tmp_path: Path) -> None:
    tensors = stored(GOLDEN_HF / "qwen2")
    tensors["lm_head.weight"] = tensors.pop("model.embed_tokens.weight")
    same_weights(in_one_file(copied("qwen2", tmp_path / "qwen2"), tensors), "qwen2")


def test_a_stored_head_that_differs_from_the_embedding_is_used_with_a_warning(tmp_path: Path) -> None:
    """transformers does the same, although the configuration says that the head is tied."""
    tensors = stored(GOLDEN_HF / "qwen2")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    tensors["lm_head.weight"][-1, -1] += 1
    found = opened(in_one_file(copied("qwen2", tmp_path / "qwen2"), tensors))
    assert not found.config.tied_head
    assert found.weights["lm_head.weight"].equal(tensors["lm_head.weight"])
    assert "lm_head.weight is another matrix" in found.warnings[0]


def test_a_head_that_is_not_tied_must_be_there(tmp_path: Path) -> None:
    message = refusal(copied("qwen2", tmp_path / "qwen2", tie_word_embeddings=False))
    assert message.endswith("lacks tensors that config.json requires: lm_head.weight")


# Refusals


Tensors = dict[str, Tensor]


def without(name: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {key: tensor for key, tensor in tensors.items() if key != name}


def with_one(name: str, tensor: Tensor) -> Callable[[Tensors], Tensors]:
    return lambda tensors: tensors | {name: tensor}


@pytest.mark.parametrize(
    ("family", "change", "reason"),
    [
        (
            "llama",
            without("model.layers.2.mlp.up_proj.weight"),
            "lacks tensors that config.json requires: model.layers.2.mlp.up_proj.weight",
        ),
        ("gpt2", without("transformer.h.0.attn.c_attn.bias"), "requires: transformer.h.0.attn.c_attn.bias"),
        (
            "llama",
            with_one("model.layers.4.mlp.up_proj.weight", torch.zeros(2, 3)),
            "has tensors that a llama with this config.json does not have: model.layers.4.mlp.up_proj.weight (2, 3)",
        ),
        ("llama", with_one("model.layers.0.self_attn.q_proj.bias", torch.zeros(64)), "q_proj.bias (64,)"),
        ("mistral", with_one("model.layers.0.block_sparse_moe.gate.weight", torch.zeros(8, 64)), "block_sparse_moe"),
        (
            "llama",
            with_one("model.norm.weight", torch.zeros(63)),
            "tensor model.norm.weight has shape (63,); config.json requires (64,)",
        ),
        (
            "gpt2",
            with_one("transformer.h.0.mlp.c_fc.weight", torch.zeros(256, 64)),
            "tensor transformer.h.0.mlp.c_fc.weight has shape (256, 64); config.json requires (64, 256)",
        ),
        (
            "gpt2",
            with_one("transformer.h.0.attn.c_attn.weight", torch.zeros(64, 64)),
            "has shape (64, 64); config.json requires (64, 192)",
        ),
        (
            "llama",
            with_one("model.norm.weight", torch.zeros(64, dtype=torch.uint8)),
            "tensor model.norm.weight is of type U8; F32, F16, BF16 are supported, and quantised weights are not",
        ),
    ],
)
def test_tensors_that_do_not_fit_the_configuration_are_refused(
    tmp_path: Path, family: str, change: Callable[[Tensors], Tensors], reason: str
) -> None:
    folder = in_one_file(copied(family, tmp_path / "run"), change(stored(GOLDEN_HF / family)))
    message = refusal(folder)
    assert message.startswith(f"{folder / WEIGHTS}: ")
    assert reason in message


def test_the_first_of_many_tensors_are_named(tmp_path: Path) -> None:
    message = refusal(copied("llama", tmp_path / "run", num_hidden_layers=5))
    assert "requires: model.layers.4." in message
    assert message.endswith(" and 4 more")


def test_a_config_of_another_size_is_refused(tmp_path: Path) -> None:
    message = refusal(copied("mistral", tmp_path / "run", vocab_size=431))
    assert "tensor model.embed_tokens.weight has shape (430, 64); config.json requires (431, 64)" in message


# Files of a model in parts


def move(folder: Path) -> None:
    index_changed(folder, **{"lm_head.weight": SHARD})


def leave_out(folder: Path) -> None:
    content = json.loads((folder / INDEX).read_text())
    del content["weight_map"]["lm_head.weight"]
    (folder / INDEX).write_text(json.dumps(content))


def twice(folder: Path) -> None:
    there = stored(folder)
    write_safetensors(folder / "more.safetensors", {"more": torch.zeros(1), "lm_head.weight": there["lm_head.weight"]})
    index_changed(folder, more="more.safetensors")


def cut_off(folder: Path) -> None:
    os.truncate(folder / SHARD, 100_000)


def pointer(folder: Path) -> None:
    (folder / SHARD).write_text("version https://git-lfs.github.com/spec/v1\n")


def link_to_another_folder(folder: Path) -> None:
    (folder / SHARD).rename(folder.parent / "elsewhere.safetensors")
    (folder / SHARD).symlink_to(folder.parent / "elsewhere.safetensors")


def link_in_circles(folder: Path) -> None:
    (folder / SHARD).unlink()
    (folder / SHARD).symlink_to(SHARD)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda folder: (folder / SHARD).unlink(), f"{SHARD}: is missing; {INDEX} names it"),
        (lambda folder: (folder / INDEX).unlink(), f"{SHARD} is a part of the weights"),
        (lambda folder: (folder / INDEX).write_text("{}"), "has no object `weight_map`"),
        (lambda folder: (folder / INDEX).write_text('{"weight_map": [1]}'), "has no object `weight_map`"),
        (lambda folder: (folder / INDEX).write_text("version https://git-lfs.github"), f"{INDEX}: is a pointer of Git"),
        (lambda folder: (folder / INDEX).write_text("["), f"{INDEX}: is not valid JSON"),
        (lambda folder: index_changed(folder, a=1), "names no file for tensor a, but 1"),
        (
            lambda folder: index_changed(folder, **{"lm_head.weight": "../x"}),
            "'../x' is not the name of a file in this",
        ),
        (
            lambda folder: index_changed(folder, **{"lm_head.weight": "/etc/passwd"}),
            "'/etc/passwd' is not the name of a file",
        ),
        (
            lambda folder: index_changed(folder, **{"lm_head.weight": "a\\b"}),
            "is not the name of a file in this folder",
        ),
        (lambda folder: index_changed(folder, **{"lm_head.weight": ".."}), "is not the name of a file"),
        (lambda folder: index_changed(folder, **{"lm_head.weight": ""}), "is not the name of a file"),
        (lambda folder: index_changed(folder, **{"lm_head.weight": "a\0b"}), "is not the name of a file"),
        (lambda folder: index_changed(folder, a=SHARD), f"says that tensor a is in {SHARD}, which does not have it"),
        (lambda folder: index_changed(folder, **{f"{n}": f"{n}" for n in range(600)}), "names 603 files; 500 are read"),
        (move, f"says that tensor lm_head.weight is in {SHARD}, which does not have it"),
        (leave_out, "tensor lm_head.weight is in model-00003-of-00003.safetensors, but the index does not name it"),
        (
            twice,
            "tensor lm_head.weight is in more.safetensors, but the index says that it is in model-00003",
        ),
        (cut_off, f"{SHARD}: was cut off: it has 100,000 bytes of"),
        (pointer, f"{SHARD}: is a pointer of Git LFS"),
        (link_to_another_folder, f"{SHARD}: is a link that leads out of this folder"),
        (link_in_circles, SHARD),
    ],
)
def test_parts_that_do_not_fit_together_are_refused(
    tmp_path: Path, change: Callable[[Path], object], reason: str
) -> None:
    folder = copied("llama", tmp_path / "llama")
    change(folder)
    assert reason in refusal(folder)


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
def test_a_link_that_leads_out_of_the_folder_is_refused(tmp_path: Path, name: str) -> None:
    folder = copied("mistral", tmp_path / "run")
    (folder / name).rename(tmp_path / "elsewhere")
    (folder / name).symlink_to("../elsewhere")
    assert f"{name}: is a link that leads out of this folder: put the file itself here" in refusal(folder)
    (folder / name).unlink()
    (tmp_path / "elsewhere").rename(folder / "real")
    (folder / name).symlink_to("real")
    same_weights(folder, "mistral")


def test_one_file_beside_an_index_is_taken(tmp_path: Path) -> None:
    """As transformers does."""
    folder = copied("llama", tmp_path / "llama")
    write_safetensors(folder / WEIGHTS, stored(folder))
    (folder / SHARD).unlink()
    same_weights(folder, "llama")


def test_a_huge_header_does_not_take_its_size_in_memory(tmp_path: Path) -> None:
    """The tensors of a file of 100 bytes cannot be gigabytes."""
    folder = copied("mistral", tmp_path / "run")
    header = {"model.norm.weight": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]}}
    (folder / WEIGHTS).write_bytes(with_header(header, bytes(100)))
    assert "was cut off" in refusal(folder)


# Softcap


def test_the_softcap_can_be_set_where_a_family_has_one() -> None:
    assert load(find(str(GOLDEN_HF / "nanochat"), GOLDEN_HF), softcap=20.0).config.softcap == 20.0
    with pytest.raises(CheckpointError, match="softcap: cannot be set: models of the family llama do not cap"):
        load(find(str(GOLDEN_HF / "llama"), GOLDEN_HF), softcap=20.0)
