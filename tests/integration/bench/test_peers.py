"""Checkpoints compared with transformers, vLLM and llama.cpp, each installed into an environment of its own."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from bench.decoding import prompts, timed_decode
from bench.peers.peer import (
    NEAR_TIE,
    ROUNDED_NEAR_TIE,
    Peer,
    default_folder,
    disagreements,
    install,
    installation,
)
from tests.helpers.huggingface_folders import GOLDEN_HF
from tests.integration.stack import ROOT
from worker.checkpoints.folder import find
from worker.checkpoints.formats import load
from worker.engine.backends import load_weights
from worker.engine.device import Device
from worker.engine.engine import Engine
from worker.engine.torch.model import Model
from worker.engine.vocabulary import Vocabulary

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

TOKENS = 40


@pytest.fixture(scope="module")
def transformers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of the peer `transformers`."""
    try:
        return install("transformers", tmp_path_factory.mktemp("peers"))
    except subprocess.CalledProcessError as error:
        pytest.skip(f"pip cannot install transformers, for instance because there is no network: {error}")


def if_installed(name: str) -> Path:
    """The interpreter of a peer whose installation is large or slow. Skips the test if it is not installed."""
    if (python := installation(name, default_folder())) is None:
        pytest.skip(f"{name} is tested only if `bench.engine --vs {name}` has installed it")
    return python


# A new process for each test, because vLLM cannot load a second model.
@pytest.fixture(params=["transformers", "vllm"])
def peer(request: pytest.FixtureRequest) -> Iterator[Peer]:
    """A peer that runs nanochat."""
    python = if_installed("vllm") if request.param == "vllm" else request.getfixturevalue("transformers")
    with Peer(request.param, python) as process:
        yield process


@pytest.fixture(params=["transformers", "llama.cpp"])
def folder_peer(request: pytest.FixtureRequest) -> Iterator[Peer]:
    """A peer that runs Hugging Face folders."""
    python = if_installed("llama.cpp") if request.param == "llama.cpp" else request.getfixturevalue("transformers")
    with Peer(request.param, python) as process:
        yield process


@pytest.mark.parametrize("on_torch", [False, True])
@pytest.mark.parametrize("name", ["step_002920", "step_003650"])
def test_a_shipped_checkpoint_generates_the_same_ids_as_in_the_peer(peer: Peer, name: str, on_torch: bool) -> None:
    checkpoint = load(find(str(ROOT / "checkpoints" / name), Path()))
    config = checkpoint.config
    files = {"meta": str(checkpoint.folder.meta_file), "model": str(checkpoint.folder.model_file)}
    peer.load(files=files, weights="exact", threads=torch.get_num_threads(), rows=5, length=200 + TOKENS)
    load_model = Model.load if on_torch else load_weights
    model = load_model(config, checkpoint.weights, Device("cpu"))
    engine = Engine(model, Vocabulary.without_text(config.vocab_size), slots=5, kv_tokens=4096, prefill_chunk_tokens=64)
    for batch, length in ((1, 1), (5, 9), (3, 200)):
        texts = prompts(batch, length, config.vocab_size)
        checked = peer.check(texts, TOKENS)
        ids = timed_decode(engine, texts, TOKENS).ids
        assert disagreements(ids, checked) == []


def test_decoding_time_is_a_part_of_the_whole_time(peer: Peer) -> None:
    peer.load(shape=[2, 64, 2, 32], weights="exact", threads=1, rows=3, length=29)
    times = peer.run(prompts(3, 9, 32), 20, peer.variants[0])
    assert 0 < times.decode_s < times.seconds


# Queries and keys with biases and bf16, and with weights of their norms and fp32. Both have grouped heads.
@pytest.mark.parametrize("name", ["qwen2", "qwen3"])
def test_a_folder_generates_the_same_ids_as_in_the_peer(folder_peer: Peer, name: str) -> None:
    folder = GOLDEN_HF / name
    checkpoint = load(find(str(folder), Path()))
    config = checkpoint.config
    folder_peer.load(folder=str(folder), weights="exact", threads=1, rows=5, length=9 + TOKENS)
    model = load_weights(config, checkpoint.weights, Device("cpu"))
    engine = Engine(model, Vocabulary.without_text(config.vocab_size), slots=5, kv_tokens=4096, prefill_chunk_tokens=64)
    for batch, length in ((1, 1), (5, 9)):
        texts = prompts(batch, length, config.vocab_size)
        checked = folder_peer.check(texts, TOKENS)
        # llama.cpp rounds keys and values to fp16, and activations to the type of the weights.
        near_tie = NEAR_TIE if folder_peer.name == "transformers" else ROUNDED_NEAR_TIE / 10
        assert disagreements(timed_decode(engine, texts, TOKENS).ids, checked, near_tie=near_tie) == []


def test_every_variant_of_a_folder_is_measured(folder_peer: Peer) -> None:
    folder_peer.load(folder=str(GOLDEN_HF / "qwen3"), weights="exact", threads=1, rows=3, length=29)
    assert len(folder_peer.variants) > 1
    for variant in folder_peer.variants:
        times = folder_peer.run(prompts(3, 9, 32), 20, variant)
        assert 0 < times.decode_s < times.seconds
