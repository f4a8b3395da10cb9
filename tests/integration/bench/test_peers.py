"""Checkpoints compared with transformers, vLLM and llama.cpp, each installed into an environment of its own."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from bench.decoding import prompts, timed_decode
from bench.peers.peer import Peer, default_folder, disagreements, install, installation
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


@pytest.fixture(scope="module", params=["transformers", "vllm"])
def installed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """The name and the interpreter of a peer."""
    if request.param == "vllm":
        if (python := installation("vllm", default_folder())) is None:
            pytest.skip("vLLM needs 3.5 GB: it is tested only if `bench.engine --vs vllm` has installed it")
        return request.param, python
    try:
        return request.param, install(request.param, tmp_path_factory.mktemp("peers"))
    except subprocess.CalledProcessError as error:
        pytest.skip(f"pip cannot install {request.param}, for instance because there is no network: {error}")


@pytest.fixture
def peer(installed: tuple[str, Path]) -> Iterator[Peer]:
    """A new process for each test, because vLLM cannot load a second model."""
    with Peer(*installed) as process:
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
