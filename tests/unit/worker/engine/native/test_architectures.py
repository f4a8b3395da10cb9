"""The kernels give the logits of the slow reference for every architecture that can be described.

The bits of a result do not depend on the batch, the chunks, the threads, or how they share a step.
"""

from __future__ import annotations

import ctypes

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers import reference
from tests.helpers.architectures import CONTEXT, architectures, random_weights
from tests.helpers.kernels import prompt_logits
from worker.engine.architecture.config import ModelConfig
from worker.engine.device import Device
from worker.engine.native.library import library
from worker.engine.native.model import NativeModel
from worker.engine.native.thread_tuner import Sharing, ThreadTuner

CPU = Device("cpu")

pytestmark = pytest.mark.skipif(library() is None, reason="no C compiler, or no kernels for this processor")


class FixedSharing(ThreadTuner):
    """Shares every step in the same way, where that is possible."""

    def __init__(self, sharing: Sharing) -> None:
        super().__init__(sharing.threads, fixed=True)
        self._sharing = sharing

    def choose(self, positions: int, *, longest: int | None = None) -> Sharing:
        return self._sharing

    def record(self, *_: object, **__: object) -> None:
        pass


def prompt_of(config: ModelConfig, length: int, seed: int) -> tuple[int, ...]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randint(config.vocab_size, (length,), generator=generator).tolist())


def shared(model: NativeModel, sharing: Sharing) -> NativeModel:
    model._tuner = FixedSharing(sharing)
    return model


@settings(deadline=None, max_examples=60)
@given(
    config=architectures(),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    seed=st.integers(0, 5),
    length=st.integers(1, CONTEXT - 2),
    chunk=st.sampled_from([1, 5, 64]),
    others=st.sampled_from([0, 2]),
)
def test_every_architecture_gives_the_logits_of_the_reference(
    kernels: ctypes.CDLL,
    config: ModelConfig,
    dtype: torch.dtype,
    seed: int,
    length: int,
    chunk: int,
    others: int,
) -> None:
    weights, prompt = random_weights(config, seed=seed, dtype=dtype), prompt_of(config, length, seed)
    model = NativeModel.load(config, weights, CPU, kernels)
    found = prompt_logits(model, prompt, chunk=chunk, others=others)
    torch.testing.assert_close(found, reference.logits(config, weights, prompt)[-1], atol=1e-3, rtol=1e-3)


@settings(deadline=None, max_examples=15)
@given(config=architectures(), seed=st.integers(0, 5), length=st.integers(1, CONTEXT - 2))
def test_no_bit_depends_on_the_batch_the_chunks_or_how_threads_share_a_step(
    kernels: ctypes.CDLL, config: ModelConfig, seed: int, length: int
) -> None:
    prompt = prompt_of(config, length, seed)
    model = NativeModel.load(config, random_weights(config, seed=seed), CPU, kernels)
    expected = prompt_logits(shared(model, Sharing(1)), prompt, chunk=64)
    for sharing in (Sharing(1), Sharing(2), Sharing(2, by_rows=True)):
        for chunk, others in ((1, 0), (7, 0), (64, 2), (3, 3)):
            found = prompt_logits(shared(model, sharing), prompt, chunk=chunk, others=others)
            assert found.equal(expected), (sharing, chunk, others)
