"""An error in a step affects only the sequence that causes it."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tasks.generation import FinishReason
from tests.helpers.engines import (
    Tampered,
    decode,
    engine,
    graph_model,
    model,
    request,
    run_until_done,
    run_until_idle,
    torch_model,
)
from worker.engine.batch import Batch
from worker.engine.decoding_model import DecodingModel
from worker.engine.request import SequenceRequest
from worker.engine.update import Failure

E7 = "E7/step_000101"
POISON = 11


def undisturbed(one: SequenceRequest) -> list[int]:
    return decode(engine(model(E7)), one).tokens


def raise_at_poison(batch: Batch, logits: Tensor) -> Tensor:
    if POISON in batch.tokens.tolist():
        raise RuntimeError("an illegal instruction")
    return logits


def test_only_the_sequence_that_makes_a_step_raise_fails(caplog: pytest.LogCaptureFixture) -> None:
    healthy = [request("a", (1, 2, 3)), request("b", tuple(range(10)), 12), request("c", (5,), 6)]
    decoding = engine(Tampered(model(E7), raise_at_poison))
    sequences = [decoding.add_request(one) for one in (*healthy, request("poison", (4, POISON, 6)))]
    with caplog.at_level(logging.WARNING):
        run_until_idle(decoding)
    assert sequences[-1].finish is FinishReason.ERROR
    assert sequences[-1].error == Failure("RuntimeError: an illegal instruction")
    for sequence, one in zip(sequences, healthy, strict=False):
        assert sequence.finish is FinishReason.LENGTH
        assert sequence.tokens == undisturbed(one)
    assert "sequence poison failed again when it ran alone" in caplog.text


def test_a_step_that_raises_once_fails_no_sequence() -> None:
    steps = 0

    def raise_once(batch: Batch, logits: Tensor) -> Tensor:
        nonlocal steps
        steps += 1
        if steps == 3:
            raise MemoryError("only this time")
        return logits

    requests = [request("a", (1, 2, 3)), request("b", tuple(range(40)), 12, temperature=1.0, seed=5)]
    decoding = engine(Tampered(model(E7), raise_once))
    sequences = [decoding.add_request(one) for one in requests]
    run_until_idle(decoding)
    assert [sequence.tokens for sequence in sequences] == [undisturbed(one) for one in requests]


def test_tokens_drawn_before_the_error_are_kept_and_reported_once() -> None:
    def raise_late(batch: Batch, logits: Tensor) -> Tensor:
        if batch.last_position >= 6:
            raise RuntimeError("too far")
        return logits

    decoding = engine(Tampered(model(E7), raise_late))
    sequence = decoding.add_request(request("a", (1, 2, 3), 20))
    reported: list[int] = []
    while decoding.has_work:
        for update in decoding.step().updates:
            reported += update.tokens
    assert sequence.finish is FinishReason.ERROR
    assert reported == sequence.tokens == undisturbed(request("a", (1, 2, 3), 4))


def test_an_error_that_breaks_the_device_fails_no_sequence_and_raises() -> None:
    def break_device(batch: Batch, logits: Tensor) -> Tensor:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    decoding = engine(Tampered(model(E7), break_device))
    sequence = decoding.add_request(request("poison", (POISON, 1)))
    with pytest.raises(RuntimeError, match="illegal memory access"):
        run_until_done(decoding, sequence)
    assert sequence.finish is None


@pytest.mark.parametrize(
    "error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")]
)
def test_a_sequence_for_which_there_is_no_memory_fails_alone_and_says_so(error: Exception) -> None:
    def raise_for_long(batch: Batch, logits: Tensor) -> Tensor:
        if POISON in batch.tokens.tolist():
            raise error
        return logits

    decoding = engine(Tampered(model(E7), raise_for_long))
    healthy = decoding.add_request(request("a", (1, 2, 3)))
    poison = decoding.add_request(request("poison", (4, POISON, 6)))
    run_until_idle(decoding)
    assert poison.error is not None
    assert poison.error.out_of_memory
    assert type(error).__name__ in poison.error.message
    assert healthy.tokens == undisturbed(request("a", (1, 2, 3)))


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_logits_that_are_not_finite_end_only_their_own_row(temperature: float, bad: float) -> None:
    def corrupt(batch: Batch, logits: Tensor) -> Tensor:
        rows = [row for row, output in enumerate(batch.outputs) if POISON in output.sequence.request.prompt]
        logits[rows, 5] = bad
        return logits

    healthy = request("a", (1, 2, 3), 10, temperature=temperature, seed=3)
    decoding = engine(Tampered(model(E7), corrupt))
    sequence = decoding.add_request(healthy)
    poison = decoding.add_request(request("poison", (POISON, 6), temperature=temperature))
    run_until_idle(decoding)
    assert (poison.finish, poison.tokens) == (FinishReason.ERROR, [])
    assert poison.error == Failure("the model's logits are not finite")
    assert sequence.tokens == undisturbed(healthy)


@pytest.mark.parametrize("load", [model, torch_model, graph_model])
def test_values_that_are_not_finite_never_reach_another_sequence_through_the_cache(
    load: Callable[[str], DecodingModel],
) -> None:
    """A NaN in the keys and values of one row reaches neither its neighbours nor the next sequence in its places."""
    decoding = engine(load(E7), slots=3, kv_tokens=96, prefill_chunk_tokens=100)
    before, broken, after = (
        decoding.add_request(request(name, tuple(range(first, first + 16)), 16)) for first, name in enumerate("abc")
    )
    decoding.step()
    extent = broken.extent
    assert extent is not None
    for keys, values in decoding._cache.layers:
        for memory in (keys, values):
            memory[:, extent.start : extent.start + extent.filled] = torch.nan
    run_until_idle(decoding)
    assert broken.finish is FinishReason.ERROR
    for sequence in (before, after):
        assert sequence.tokens == undisturbed(sequence.request)
    # The one in the middle reads as many places as its neighbours, including places that held NaN before.
    next_ones = [
        decoding.add_request(request(name, tuple(range(length)), 12)) for name, length in (("d", 9), ("e", 2), ("f", 9))
    ]
    run_until_idle(decoding)
    for sequence in next_ones:
        assert sequence.tokens == undisturbed(sequence.request)


def test_an_idle_engine_that_still_holds_something_raises() -> None:
    decoding = engine(model(E7))
    decoding.kv_budget.try_reserve(32)
    with pytest.raises(RuntimeError, match="'reserved tokens': 32"):
        decoding.check_idle()
