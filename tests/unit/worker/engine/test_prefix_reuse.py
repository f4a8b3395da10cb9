"""Prefix reuse: equal beginnings are computed once, and no token and no bit of the cache changes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from tasks.generation import FinishReason
from tests.helpers.engines import (
    FOLDERS,
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
from tests.helpers.requests import changed
from worker.engine.batch import Batch
from worker.engine.decoding_model import DecodingModel
from worker.engine.engine import Engine
from worker.engine.kv.budget import BLOCK_TOKENS
from worker.engine.native.library import library
from worker.engine.native.model import NativeModel
from worker.engine.request import SequenceRequest
from worker.engine.sequence import Sequence

#: Full attention; windows, grouped queries, value embeddings and smear.
SEED, E7 = "E1b-seed/step_000102", "E7/step_000101"
#: Differences of keys and values that torch computes in chunks of other sizes.
ROUNDING = 1e-4


def ids(length: int, kind: int = 0) -> tuple[int, ...]:
    """A text of its own for each kind."""
    return tuple((3 * position + position * position // 7 + 11 * kind) % 29 for position in range(length))


def content(running: Engine, sequence: Sequence) -> Tensor:
    """The keys and values of a running sequence."""
    assert sequence.extent is not None
    return running._cache.memory[..., sequence.extent.start : sequence.extent.start + sequence.cached, :].clone()


def computed(decoding: DecodingModel, tokens: tuple[int, ...]) -> Tensor:
    """Their keys and values, computed in one step without reuse."""
    fresh = engine(decoding, slots=1, kv_tokens=1024, prefill_chunk_tokens=1024, prefix_cache=False)
    sequence = fresh.add_request(request("fresh", tokens, 2))
    fresh.step()
    return content(fresh, sequence)


def all_tokens(sequence: Sequence) -> tuple[int, ...]:
    return (*sequence.request.prompt, *sequence.tokens)


class Counted:
    """An engine that counts the positions that go through its model."""

    def __init__(self, folder: str = SEED, **options: int | bool) -> None:
        self.positions = 0
        self.engine = engine(Tampered(model(folder), self._count), **options)  # type: ignore[arg-type]

    def _count(self, batch: Batch, logits: Tensor) -> Tensor:
        self.positions += len(batch.tokens)
        return logits

    def decode(self, one: SequenceRequest) -> tuple[Sequence, int]:
        """Decode a request. Returns its sequence, and the positions that were computed for it."""
        before = self.positions
        sequence = decode(self.engine, one)
        return sequence, self.positions - before


def undisturbed(one: SequenceRequest, folder: str = SEED) -> list[int]:
    return decode(engine(model(folder), prefix_cache=False), replace(one, alone=0)).tokens


class Scenario:
    """Requests with common beginnings, at random times, and what the engine makes of them."""

    def __init__(self, decoding: DecodingModel, data: st.DataObject) -> None:
        self.model = decoding
        self.longest = decoding.config.sequence_len - 2
        self.data = data
        self.engine = engine(
            decoding,
            slots=data.draw(st.integers(1, 5), label="slots"),
            kv_tokens=data.draw(st.sampled_from([1, 2, 3, 5]), label="contexts") * decoding.config.sequence_len,
            prefill_chunk_tokens=data.draw(st.sampled_from([7, 32, 50, 100, 500]), label="chunk"),
        )
        self.sequences: list[Sequence] = []
        self.checked: set[Sequence] = set()
        self.reused = 0

    def run(self) -> None:
        for _ in range(self.data.draw(st.integers(2, 9), label="arrivals")):
            self.sequences.append(self.engine.add_request(self._request()))
            for _ in range(self.data.draw(st.sampled_from([0, 0, 1, 3, 30]), label="steps")):
                self._step()
            if self.data.draw(st.sampled_from([False] * 5 + [True]), label="aborts"):
                self.engine.abort(self.sequences[self.data.draw(st.integers(0, len(self.sequences) - 1))].id)
        while self.engine.has_work:
            self._step()
        self.engine.check_idle()

    def _request(self) -> SequenceRequest:
        draw, number = self.data.draw, len(self.sequences)
        earlier = draw(st.sampled_from(self.sequences), label="earlier") if self.sequences else None
        kind = draw(st.sampled_from(["fresh", "turn", "turn", "again", "resumed"]), label="kind")
        if earlier is None or kind == "fresh":
            beginning = ids(draw(st.integers(0, self.longest), label="shared"), kind=draw(st.integers(0, 1)))
        else:
            beginning = earlier.request.prompt if kind in {"again", "resumed"} else all_tokens(earlier)
        own = draw(st.sampled_from([0, 1, 20, 70]), label="own") if kind in {"fresh", "turn"} else 0
        answer = draw(st.integers(1, 40), label="answer")
        prompt = ((*beginning, *ids(own, kind=2 + number)) or (1,))[: self.longest - answer]
        one = request(
            str(number),
            prompt,
            answer,
            temperature=draw(st.sampled_from([0.0, 1.0])),
            seed=number,
            alone=draw(st.sampled_from([0, 0, 0, 0, 2])),
            cache_salt=draw(st.sampled_from(["", "", "", "other"])),
            keep_prompt_logits=draw(st.booleans()),
        )
        if kind == "resumed" and earlier is not None and prompt == earlier.request.prompt:
            sampling = earlier.request.sampling
            return replace(one, sampling=sampling, generated=tuple(earlier.tokens[: sampling.max_tokens - 1]))
        return one

    def _step(self) -> None:
        self.engine.step()
        for sequence in self.sequences:
            if sequence.cached_tokens and sequence.cached and sequence not in self.checked:
                self.checked.add(sequence)
                self.reused += sequence.cached_tokens
                self.check_content(sequence)

    def check_content(self, sequence: Sequence) -> None:
        tokens = all_tokens(sequence)[: sequence.cached]
        found, expected = content(self.engine, sequence), computed(self.model, tokens)
        if isinstance(self.model, NativeModel):
            assert found.equal(expected)
        else:
            torch.testing.assert_close(found, expected, atol=ROUNDING, rtol=0)

    def check_tokens(self) -> None:
        """Every sequence has the tokens and the logits that it has alone and without reuse."""
        for sequence in self.sequences:
            alone = decode(
                engine(self.model, slots=1, kv_tokens=1024, prefix_cache=False), replace(sequence.request, alone=0)
            )
            assert sequence.tokens == alone.tokens[: len(sequence.tokens)]
            assert sequence.finish in {alone.finish, FinishReason.CANCELLED}
            if sequence.prompt_logits is not None:
                assert sequence.prompt_logits == alone.prompt_logits


@pytest.mark.skipif(library() is None, reason="bits do not depend on chunks only in the compiled kernels")
@pytest.mark.parametrize("folder", FOLDERS)
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_tokens_and_bits_are_those_without_reuse(folder: str, data: st.DataObject) -> None:
    """KV memory is scarce or not; prompts are longer than the windows, chunks have any size."""
    scenario = Scenario(model(folder), data)
    scenario.run()
    scenario.check_tokens()


@pytest.mark.parametrize("folder", [SEED, E7])
@pytest.mark.parametrize("load", [torch_model, graph_model])
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_on_torch_the_cache_holds_the_same_numbers_up_to_rounding(
    load: Callable[[str], DecodingModel], folder: str, data: st.DataObject
) -> None:
    Scenario(load(folder), data).run()
