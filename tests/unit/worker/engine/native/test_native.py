"""The compiled kernels give the results of torch, for every kind of processor that this machine can run as.

The bits of a result do not depend on the batch, the chunks or the threads.
"""

from __future__ import annotations

import ctypes
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from bench.random_weights import random_weights
from tests.helpers.engines import checkpoint, engine, request
from tests.helpers.kernels import multiply, packed, prompt_logits
from worker.engine.architecture.era import ERAS, nanochat_config
from worker.engine.backends import load_weights
from worker.engine.decoding_model import DecodingModel
from worker.engine.device import Device
from worker.engine.native import library as libraries
from worker.engine.native.library import library
from worker.engine.native.model import NativeModel
from worker.engine.native.thread_tuner import Sharing, ThreadTuner
from worker.engine.torch.model import Model

ROOT = Path(__file__).parents[5]
CPU = Device("cpu")
THREAD_COUNTS = [1, 2, 3]
#: The first has full attention; the second has grouped queries, windows, value embeddings and smear.
FOLDERS = ["E1b-seed/step_000102", "E7/step_000101"]

pytestmark = pytest.mark.skipif(library() is None, reason="no C compiler, or no kernels for this processor")


@pytest.fixture(autouse=True)
def restored_threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("outputs", "depth"), [(1, 1), (7, 3), (32, 16), (100, 800), (257, 1600)])
def test_a_gemm_gives_the_result_of_torch_and_no_bit_of_a_row_depends_on_other_rows(
    kernels: ctypes.CDLL, outputs: int, depth: int, dtype: torch.dtype
) -> None:
    weight = torch.randn(outputs, depth).to(dtype)
    matrix = packed(kernels, weight)
    x = torch.randn(40, depth)
    alone = torch.cat([multiply(kernels, matrix, x[row : row + 1].clone(), 1) for row in range(len(x))])
    torch.testing.assert_close(alone, F.linear(x, weight.float()), atol=1e-3, rtol=1e-4)
    for rows in (*range(2, 15), 24, 25, 40):
        for threads in THREAD_COUNTS:
            assert multiply(kernels, matrix, x[:rows].clone(), threads).equal(alone[:rows]), (rows, threads)


@pytest.mark.parametrize("folder", FOLDERS)
def test_the_kernels_give_the_logits_of_torch(kernels: ctypes.CDLL, folder: str) -> None:
    found = checkpoint(folder)
    torch.set_num_threads(2)
    native = NativeModel.load(found.config, found.weights, CPU, kernels)
    assert_same_logits(native, Model.load(found.config, found.weights, CPU), tuple(range(30)) * 5)


@pytest.mark.parametrize(("width", "heads"), [(64, 2), (128, 2), (256, 2), (192, 2), (144, 4), (30, 3)])
def test_heads_of_any_size_give_the_logits_of_torch(kernels: ctypes.CDLL, width: int, heads: int) -> None:
    era = ERAS["E1b"]
    config = nanochat_config(
        sequence_len=512,
        vocab_size=40,
        rows=40,
        n_layer=2,
        n_head=heads,
        n_kv_head=heads,
        n_embd=width,
        era=era,
    )
    weights = random_weights(2, width, 40)
    native = NativeModel.load(config, weights, CPU, kernels)
    assert_same_logits(native, Model.load(config, weights, CPU), tuple(range(39)) * 8)


def assert_same_logits(one: DecodingModel, other: DecodingModel, prompt: tuple[int, ...]) -> None:
    first, second = (prompt_logits(decoding, prompt, chunk=100) for decoding in (one, other))
    torch.testing.assert_close(first, second, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("folder", FOLDERS)
def test_no_bit_of_a_sequence_depends_on_its_batch_its_chunks_or_the_threads(folder: str) -> None:
    found = checkpoint(folder)
    prompt = tuple((7 * position) % 30 for position in range(90))
    logits = []
    for threads in THREAD_COUNTS:
        torch.set_num_threads(threads)
        decoding = load_weights(found.config, found.weights, Device("cpu", fixed_threads=True))
        for chunk, others in ((1024, 0), (64, 0), (7, 0), (1, 0), (50, 3), (13, 20)):
            logits.append(prompt_logits(decoding, prompt, chunk=chunk, others=others))
    assert all(one.equal(logits[0]) for one in logits)


@pytest.mark.parametrize("folder", FOLDERS)
def test_no_bit_depends_on_how_threads_share_a_step(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = checkpoint(folder)
    caches: list[Tensor] = []
    texts = []
    by_matrices = [Sharing(1), Sharing(2), Sharing(3)]
    by_rows = [Sharing(2, by_rows=True), Sharing(3, by_rows=True), Sharing(8, by_rows=True)]
    for sharing in by_matrices + by_rows:

        def choose(*_: object, longest: int | None = None, sharing: Sharing = sharing) -> Sharing:
            return sharing if longest is not None else Sharing(sharing.threads)

        monkeypatch.setattr(ThreadTuner, "choose", choose)
        monkeypatch.setattr(ThreadTuner, "record", lambda *_, **__: None)
        torch.set_num_threads(sharing.threads)
        running = engine(load_weights(found.config, found.weights, CPU), slots=7, kv_tokens=2048)
        # Prompts of different lengths, some of them longer than one prefill chunk.
        sequences = [
            running.add_request(request(str(row), (1 + row, *range(4 * row)), 20 + row, temperature=0.5))
            for row in range(7)
        ]
        while running.has_work:
            running.step()
        texts.append([sequence.tokens for sequence in sequences])
        caches.append(running._cache.memory.clone())
    assert all(text == texts[0] for text in texts)
    assert all(cache.equal(caches[0]) for cache in caches)


def test_without_a_compiler_the_model_runs_on_torch(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("worker.engine.backends.library", libraries.library.__wrapped__)
    found = checkpoint(FOLDERS[0])
    with caplog.at_level(logging.WARNING):
        assert isinstance(load_weights(found.config, found.weights, CPU), Model)
    assert "no C compiler is on PATH" in caplog.text


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_process_starts_its_own_threads() -> None:
    program = (
        "import os, torch\n"
        "from tests.helpers.engines import decode, engine, model, request\n"
        "torch.set_num_threads(2)\n"
        f"decoding = model({FOLDERS[0]!r})\n"
        "tokens = [decode(engine(decoding), request('a')).tokens for _ in range(3)][0]\n"
        "child = os.fork()\n"
        "if not child:\n"
        "    os._exit(decode(engine(decoding), request('a')).tokens != tokens)\n"
        "os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60, cwd=ROOT)
