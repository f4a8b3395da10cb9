"""Folders become GGUF files as llama.cpp's converter writes them, and the same folders again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from gguf import GGMLQuantizationType, dequantize

from tests.helpers.gguf_files import GgufFile, of_folder, read_weights
from tests.helpers.huggingface_folders import golden, opened
from worker.checkpoints.tokenizers import load_tokenizer
from worker.conversion.gguf.convert import read_gguf

GOLDEN = Path(__file__).parents[4] / "fixtures" / "golden-hf"
FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "smollm3", "gpt2")


def converted(file: GgufFile, folder: Path, *, exact: bool = False) -> Path:
    """The folder that a file is converted into."""
    model = read_gguf(file.write(folder.with_suffix(".gguf")), exact=exact)
    folder.mkdir()
    model.write_into(folder, lambda size: None)
    return folder


def read_json(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text())
    return content


@pytest.mark.parametrize("family", FAMILIES)
def test_the_weights_are_those_of_the_folder_that_the_file_was_made_from(family: str, tmp_path: Path) -> None:
    found = read_weights(converted(of_folder(GOLDEN / family), tmp_path / "model"))
    expected = read_weights(GOLDEN / family)
    assert found.keys() == expected.keys()
    for name, (kind, content) in expected.items():
        assert found[name][0] == kind, name
        assert np.array_equal(found[name][1], content), name


@pytest.mark.parametrize("family", FAMILIES)
def test_the_configuration_is_that_of_the_folder(family: str, tmp_path: Path) -> None:
    folder = converted(of_folder(GOLDEN / family), tmp_path / "model")
    found, expected = read_json(folder / "config.json"), read_json(GOLDEN / family / "config.json")
    if family != "gpt2":
        scaling = found.pop("rope_scaling") or {"rope_type": "default"}
        assert {**scaling, "rope_theta": found.pop("rope_theta")} == expected.pop("rope_parameters")
    # The file names one token that ends a text; others are found by their names.
    ends = expected.pop("eos_token_id")
    assert set(ends if isinstance(ends, list) else [ends]) <= set(np.ravel(found.pop("eos_token_id")).tolist())
    if family == "gpt2":
        expected["n_inner"] = 4 * expected["n_embd"]
    if family == "smollm3":
        # Unknown to the file.
        expected["pad_token_id"] = None
    assert {name: expected.get(name) for name in found} == found


@pytest.mark.parametrize("family", FAMILIES)
def test_celeriac_reads_the_same_model_and_tokenizer(family: str, tmp_path: Path) -> None:
    folder = converted(of_folder(GOLDEN / family), tmp_path / "model")
    found, expected = opened(folder), golden(family)
    assert found.config == expected.config
    vocab_size = expected.config.vocab_size
    tokenizer, original = load_tokenizer(found.folder, vocab_size), load_tokenizer(expected.folder, vocab_size)
    assert tokenizer.encode("Hello, world 123").ids == original.encode("Hello, world 123").ids
    assert tokenizer.stop_ids >= original.stop_ids


@pytest.mark.parametrize("family", FAMILIES)
def test_texts_and_conversations_give_the_same_ids(family: str, tmp_path: Path) -> None:
    folder = converted(of_folder(GOLDEN / family), tmp_path / "model")
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    for case in read_json(GOLDEN / family / "expected.json")["texts"]:
        assert tokenizer.encode(case["text"], add_special_tokens=False).ids == case["plain_ids"]
        assert tokenizer.encode(case["text"]).ids == case["ids"]
    template = GOLDEN / family / "chat_template.jinja"
    written = folder / "chat_template.jinja"
    assert written.exists() == template.exists()
    assert not template.exists() or written.read_text() == template.read_text()


@pytest.mark.parametrize("family", FAMILIES)
def test_quantised_matrices_become_bf16_or_exactly_fp32(family: str, tmp_path: Path) -> None:
    plain = of_folder(GOLDEN / family)
    file = plain.quantized(GGMLQuantizationType.Q8_0)
    exact = read_weights(converted(file, tmp_path / "exact", exact=True))
    rounded = read_weights(converted(file, tmp_path / "rounded"))
    original = read_weights(GOLDEN / family)
    for name, (kind, values) in exact.items():
        if values.ndim == 1 or "wpe" in name:
            continue
        assert (kind, rounded[name][0]) == ("F32", "BF16")
        # Half of the distance between two numbers of bf16, and the step of Q8_0.
        assert np.allclose(_fp32(rounded[name]), values, rtol=2**-8)
        assert np.allclose(values, _fp32(original[name]), atol=0.01 * np.abs(_fp32(original[name])).max())
    kind, stored = file.tensors["token_embd.weight"]
    assert kind == GGMLQuantizationType.Q8_0
    [table] = [name for name in exact if name.endswith(("embed_tokens.weight", "wte.weight"))]
    assert np.array_equal(exact[table][1], dequantize(stored, kind))


def _fp32(tensor: tuple[str, np.ndarray]) -> np.ndarray:
    kind, content = tensor
    return (content.astype(np.uint32) << 16).view(np.float32) if kind == "BF16" else content.astype(np.float32)


def test_a_head_that_equals_the_embedding_is_not_written_again(tmp_path: Path) -> None:
    file = of_folder(GOLDEN / "gpt2")
    file.tensors["output.weight"] = file.tensors["token_embd.weight"]
    folder = converted(file, tmp_path / "model")
    assert read_json(folder / "config.json")["tie_word_embeddings"] is True
    assert "lm_head.weight" not in read_weights(folder)


def test_fp16_stays_fp16_and_vectors_that_it_would_change_stay_fp32(tmp_path: Path) -> None:
    file = of_folder(GOLDEN / "mistral")
    for name, (_, content) in file.tensors.items():
        if content.ndim == 2:
            file.tensors[name] = GGMLQuantizationType.F16, content.astype(np.float16)
    norm = np.full(64, 1.0, np.float32)
    file.tensors["blk.0.attn_norm.weight"] = GGMLQuantizationType.F32, norm
    file.tensors["blk.1.attn_norm.weight"] = GGMLQuantizationType.F32, norm + np.float32(2**-20)
    weights = read_weights(converted(file, tmp_path / "model"))
    assert {kind for kind, content in weights.values() if content.ndim == 2} == {"F16"}
    assert weights["model.layers.0.input_layernorm.weight"][0] == "F16"
    kind, content = weights["model.layers.1.input_layernorm.weight"]
    assert kind == "F32"
    assert (content == norm + np.float32(2**-20)).all()


def test_matrices_of_several_types_become_the_one_that_holds_all_values(tmp_path: Path) -> None:
    file = of_folder(GOLDEN / "qwen2")
    kind, content = file.tensors["token_embd.weight"]
    assert kind == GGMLQuantizationType.BF16
    file.tensors["token_embd.weight"] = GGMLQuantizationType.F16, dequantize(content, kind).astype(np.float16)
    folder = converted(file, tmp_path / "model")
    assert {kind for kind, content in read_weights(folder).values() if content.ndim == 2} == {"F32"}
    assert read_json(folder / "config.json")["dtype"] == "float32"


def test_biases_of_attention_and_mlp_are_found(tmp_path: Path) -> None:
    file = of_folder(GOLDEN / "llama")
    random = np.random.default_rng(0)
    for layer in range(4):
        for part in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"):
            kind, content = file.tensors[f"blk.{layer}.{part}.weight"]
            rows = dequantize(content, kind).shape[0]
            file.tensors[f"blk.{layer}.{part}.bias"] = (
                GGMLQuantizationType.F32,
                random.standard_normal(rows).astype(np.float32),
            )
    folder = converted(file, tmp_path / "model")
    config = read_json(folder / "config.json")
    assert (config["attention_bias"], config["mlp_bias"]) == (True, True)
    found = read_weights(folder)["model.layers.0.self_attn.k_proj.bias"][1]
    stored = file.tensors["blk.0.attn_k.bias"][1]
    # Two heads of 16 channels: the first channels of the eight pairs, then the second.
    assert np.array_equal(found[:8], stored[0:16:2])
    assert np.array_equal(found[8:16], stored[1:16:2])
