"""What cannot become a folder is refused before anything is written, and the message names it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers.gguf_files import GgufFile, of_folder
from tests.unit.worker.conversion.gguf.test_families import GOLDEN
from worker.checkpoints.errors import CheckpointError
from worker.conversion.gguf.convert import read_gguf

F32, Q8_0 = GGMLQuantizationType.F32, GGMLQuantizationType.Q8_0
Change = Callable[[GgufFile], Any]


def with_metadata(**changes: Any) -> Change:
    """Change keys; `__` stands for a dot."""
    return lambda file: file.metadata.update({key.replace("__", "."): value for key, value in changes.items()})


def with_architecture(name: str) -> Change:
    return lambda file: setattr(file, "architecture", name)


def with_tensor(name: str, *shape: int) -> Change:
    return lambda file: file.tensors.update({name: (F32, np.ones(shape, np.float32))})


def without_tensor(name: str) -> Change:
    return lambda file: file.tensors.pop(name)


REFUSED: dict[str, tuple[str, Change, str]] = {
    "architecture": ("llama", with_architecture("gemma3"), "architecture gemma3, which is not supported: llama"),
    "experts": ("llama", with_metadata(__expert_count=8), "mixture of experts"),
    "moe": ("llama", with_architecture("qwen2moe"), "mixture of experts"),
    "split": ("llama", with_metadata(split__count=3), "one of 3 parts of a model: join them"),
    "adapter": ("llama", with_metadata(general__type="adapter"), "holds a adapter"),
    "unknown parameter": ("llama", with_metadata(__logit_scale=2.0), "not supported: llama.logit_scale"),
    "not causal": ("qwen3", with_metadata(__attention__causal=False), "later tokens"),
    "heads by layer": (
        "llama",
        with_metadata(__attention__head_count_kv=[2, 2, 1, 2]),
        "llama.attention.head_count_kv differs by layer",
    ),
    "missing size": ("llama", with_metadata(__block_count=None), "llama.block_count is missing"),
    "too many layers": ("llama", with_metadata(__block_count=1 << 30), "1073741824 layers, and the file only"),
    "width": ("qwen2", with_metadata(__attention__head_count=5), "cannot be divided among 5 heads"),
    "rotated channels": ("llama", with_metadata(__rope__dimension_count=8), "rotates 8 of 16 channels"),
    "value channels": ("llama", with_metadata(__attention__value_length=8), "16 channels for keys and 8 for values"),
    "window": ("qwen3", with_metadata(__attention__sliding_window=32), "sliding_window is not supported"),
    "epsilon": ("llama", with_metadata(__attention__layer_norm_rms_epsilon=None), "rms_epsilon is missing"),
    "type of a value": ("llama", with_metadata(__block_count="4"), "llama.block_count is of type STRING"),
    "missing tensor": ("llama", without_tensor("blk.1.ffn_up.weight"), "requires: blk.1.ffn_up.weight"),
    "missing table": ("llama", without_tensor("token_embd.weight"), "no matrix token_embd.weight"),
    "missing bias": ("qwen2", without_tensor("blk.2.attn_k.bias"), "requires: blk.2.attn_k.bias"),
    "tensor left over": ("llama", with_tensor("blk.0.attn_sinks.weight", 4), "no supported model has: blk.0.attn_sin"),
    "bias of queries alone": ("llama", with_tensor("blk.0.attn_v.bias", 32), "no supported model has: blk.0.attn_v.b"),
    "shape": ("llama", with_tensor("blk.0.attn_k.weight", 64, 64), r"shape \(64, 64\); its metadata requires \(32, 64"),
    "rope scaling": ("qwen2", with_metadata(__rope__scaling__type="longrope"), "type 'longrope' is not supported"),
    "yarn without context": (
        "qwen2",
        with_metadata(__rope__scaling__type="yarn", __rope__scaling__factor=4.0),
        "original_context_length is missing",
    ),
    "yarn's factor of attention": (
        "qwen2",
        with_metadata(
            __rope__scaling__type="yarn",
            __rope__scaling__factor=4.0,
            __rope__scaling__original_context_length=128,
            __rope__scaling__yarn_attn_factor=0.5,
        ),
        "yarn_attn_factor is not 1",
    ),
    "divisors": (
        "mistral",
        lambda file: file.tensors.update({"rope_freqs.weight": (F32, np.arange(1, 9, dtype=np.float32))}),
        "divisors that no supported rule",
    ),
    "divisor of zero": (
        "mistral",
        lambda file: file.tensors.update({"rope_freqs.weight": (F32, np.zeros(8, np.float32))}),
        "divisors that are not positive",
    ),
    "infinite scale": (
        "mistral",
        lambda file: file.tensors.update({"blk.0.attn_v.weight": (Q8_0, np.full((32, 68), 0x7C, np.uint8))}),
        "blk.0.attn_v.weight has numbers that are not finite",
    ),
    "not finite": (
        "mistral",
        lambda file: file.tensors.update({"output_norm.weight": (F32, np.full(64, np.nan, np.float32))}),
        "output_norm.weight has numbers that are not finite",
    ),
    "type of numbers": (
        "mistral",
        lambda file: file.tensors.update(
            {"blk.0.attn_v.weight": (GGMLQuantizationType.I8, np.ones((32, 64), np.int8))}
        ),
        "blk.0.attn_v.weight is of type I8",
    ),
    "no tokenizer": ("llama", with_metadata(tokenizer__ggml__model=None), "no tokenizer"),
    "kind of tokenizer": ("llama", with_metadata(tokenizer__ggml__model="t5"), "a tokenizer of kind t5"),
    "pre-tokenizer": ("llama", with_metadata(tokenizer__ggml__pre="viking"), "divides texts as viking"),
    "no pre-tokenizer": ("llama", with_metadata(tokenizer__ggml__pre=None), "does not say how texts are divided"),
    "no merges": ("llama", with_metadata(tokenizer__ggml__merges=None), "lacks tokenizer.ggml.merges"),
    "unknown merge": ("llama", with_metadata(tokenizer__ggml__merges=["qq zz"]), "the tokenizers library refuses"),
    "no scores": ("llama", with_metadata(tokenizer__ggml__model="llama"), "lacks tokenizer.ggml.scores"),
    "no types": ("llama", with_metadata(tokenizer__ggml__token_type=None), "tokenizer.ggml.token_type"),
    "too many tokens": (
        "llama",
        lambda file: (
            file.metadata["tokenizer.ggml.tokens"].append("more"),
            file.metadata["tokenizer.ggml.token_type"].append(1),
        ),
        "has 431 tokens, and its embedding only 430 rows",
    ),
    "same token twice": (
        "llama",
        lambda file: file.metadata["tokenizer.ggml.tokens"].__setitem__(7, "!"),
        "two tokens with the same text",
    ),
}


@pytest.mark.parametrize(("family", "change", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_refused(family: str, change: Change, message: str, tmp_path: Path) -> None:
    file = of_folder(GOLDEN / family)
    change(file)
    with pytest.raises(CheckpointError, match=message) as error:
        read_gguf(file.write(tmp_path / "model.gguf"))
    assert str(error.value).startswith(str(tmp_path / "model.gguf"))


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    with pytest.raises(CheckpointError, match="No such file"):
        read_gguf(path)
    path.write_bytes(b"PK\x03\x04")
    with pytest.raises(CheckpointError, match="is not a GGUF file"):
        read_gguf(path)
    path.write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(CheckpointError, match="Git LFS"):
        read_gguf(path)
    with pytest.raises(CheckpointError, match="not a regular file"):
        read_gguf(tmp_path)


def test_a_file_that_was_cut_off_is_refused_wherever_it_ends(tmp_path: Path) -> None:
    data = of_folder(GOLDEN / "qwen3").write(tmp_path / "whole.gguf").read_bytes()
    path = tmp_path / "model.gguf"
    for size in (4, 8, 20, 100, 1000, 5000, 20_000, len(data) // 2, len(data) - 1000):
        path.write_bytes(data[:size])
        with pytest.raises(CheckpointError, match=r"model\.gguf: "):
            read_gguf(path)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file that is not damaged."""
    return of_folder(GOLDEN / "qwen3").write(tmp_path_factory.mktemp("whole") / "model.gguf")


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_a_damaged_file_is_refused_or_read(whole: Path, data: st.DataObject) -> None:
    content = bytearray(whole.read_bytes())
    # Where counts, lengths and types are: the beginning, and the places of the tensors.
    tensors = content.index(b"token_embd.weight")
    near = st.one_of(st.integers(0, 1500), st.integers(tensors - 200, tensors + 3000))
    for at in data.draw(st.lists(near, min_size=1, max_size=3)):
        content[at] = data.draw(st.sampled_from([0, 1, 0x7F, 0xFF]))
    damaged = whole.with_name("damaged.gguf")
    damaged.write_bytes(content)
    with suppress(CheckpointError):
        read_gguf(damaged)


@pytest.mark.parametrize(
    ("key", "message"),
    [
        (b"tokenizer.ggml.tokens", "cut off, or is damaged"),
        (b"tokenizer.ggml.token_type", "cut off, or is damaged"),
    ],
)
def test_a_list_that_claims_more_than_the_file_has_is_refused(
    key: bytes, message: str, whole: Path, tmp_path: Path
) -> None:
    content = bytearray(whole.read_bytes())
    # After the key: the type of the value, that of the elements, and their number.
    count = content.index(key) + len(key) + 8
    content[count : count + 8] = (1 << 60).to_bytes(8, "little")
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        read_gguf(path)


def test_versions_and_byte_orders_that_are_not_supported_are_named(whole: Path, tmp_path: Path) -> None:
    data = whole.read_bytes()
    path = tmp_path / "model.gguf"
    for version, message in (
        ((1).to_bytes(4, "little"), "is of version 1, which is not supported"),
        ((3).to_bytes(4, "big"), "another byte order, which is not supported"),
    ):
        path.write_bytes(data[:4] + version + data[8:])
        with pytest.raises(CheckpointError, match=message):
            read_gguf(path)
