"""Prefix reuse: equal beginnings are computed once, and no token and no bit of the cache changes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from tasks.generation import FinishReason
from tests.helpers.engines import (
    FOLDERS,
    Tampered,
    checkpoint,
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
from worker.engine.backends import load_weights
from worker.engine.batch import Batch
from worker.engine.decoding_model import DecodingModel
from worker.engine.device import Device
from worker.engine.engine import Engine
from worker.engine.native.library import library
from worker.engine.native.model import NativeModel
from worker.engine.request import SequenceRequest
from worker.engine.sequence import Sequence

#: Full attention; windows, grouped queries, value embeddings and smear.
SEED, E7 = "E1b-seed/step_000102", "E7/step_000101"
#: Differences of keys and values that torch computes in chunks of other sizes.
ROUNDING = 1e-4


@cache
def int8_model(folder: str) -> DecodingModel:
    """A reference checkpoint with weights of 8 bits."""
    found = checkpoint(folder)
    return load_weights(found.config, found.weights, Device("cpu"), "int8")


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
@pytest.mark.parametrize(("folder", "load"), [*((folder, model) for folder in FOLDERS), (E7, int8_model)])
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_tokens_and_bits_are_those_without_reuse(
    load: Callable[[str], DecodingModel], folder: str, data: st.DataObject
) -> None:
    """KV memory is scarce or not; prompts are longer than the windows, chunks have any size."""
    scenario = Scenario(load(folder), data)
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


def test_a_second_turn_computes_only_what_is_new_and_takes_over_the_place_of_the_first() -> None:
    counted = Counted(slots=4, kv_tokens=4 * 256)
    first, _ = counted.decode(request("first", ids(100), 30))
    turn = request("second", (*all_tokens(first), *ids(20, kind=1)), 8)
    second = counted.engine.add_request(turn)
    counted.positions = 0
    counted.engine.step()
    assert second.extent is not None
    assert (second.extent.start, len(counted.engine._cache.allocator.used)) == (0, 1)
    run_until_done(counted.engine, second)
    assert second.cached_tokens == 129, "all but the last token of the first turn"
    assert counted.positions == 150 - 129 + 7
    assert second.tokens == undisturbed(turn)


def test_the_same_prompt_again_copies_and_leaves_the_first_answer_where_it_is() -> None:
    counted = Counted(slots=4, kv_tokens=4 * 256)
    first, _ = counted.decode(request("first", ids(64), 40))
    again, positions = counted.decode(request("again", ids(64), 8))
    assert (again.cached_tokens, positions) == (63, 1 + 7), "the last position must be computed"
    assert again.tokens == first.tokens[:8]
    turn, positions = counted.decode(request("turn", all_tokens(first), 8))
    assert (turn.cached_tokens, positions) == (103, 1 + 7)


def test_a_running_sequence_shares_what_it_has_decoded() -> None:
    counted = Counted()
    first = counted.engine.add_request(request("first", ids(30), 60))
    while len(first.tokens) < 45:
        counted.engine.step()
    turn = request("second", all_tokens(first)[:70], 4)
    second = run_until_done(counted.engine, counted.engine.add_request(turn))
    assert second.cached_tokens == 69
    assert second.tokens == undisturbed(turn)
    run_until_idle(counted.engine)
    assert first.tokens == undisturbed(first.request)


def test_a_resumed_attempt_reuses_the_tokens_that_it_generated() -> None:
    counted = Counted()
    whole, _ = counted.decode(request("whole", ids(40), 80))
    resumed, positions = counted.decode(changed(whole.request, id="resumed", generated=tuple(whole.tokens[:70])))
    assert resumed.tokens == whole.tokens
    assert resumed.cached_tokens == 40, "only tokens of the prompt count"
    assert positions == 1 + 9


def test_other_owners_and_other_beginnings_share_nothing() -> None:
    counted = Counted()
    counted.decode(request("first", ids(64), 8, cache_salt="alice"))
    for name, prompt, salt in (
        ("owner", ids(64), "bob"),
        ("none", ids(64), ""),
        ("token", (28, *ids(64)[1:]), "alice"),
    ):
        sequence, positions = counted.decode(request(name, prompt, 8, cache_salt=salt))
        assert (sequence.cached_tokens, positions) == (0, 64 + 7)
    assert counted.decode(request("same", ids(64), 8, cache_salt="alice"))[0].cached_tokens == 63


def test_without_the_prefix_cache_nothing_is_kept() -> None:
    counted = Counted(prefix_cache=False)
    for name in ("first", "second"):
        sequence, positions = counted.decode(request(name, ids(64), 8))
        assert (sequence.cached_tokens, positions) == (0, 64 + 7)
    assert counted.engine._cache.allocator.used == []


@pytest.mark.parametrize(
    ("fields", "length", "generated", "reused"),
    [
        ({"prompt_logprobs": 0}, 70, 0, 0),
        ({"keep_prompt_logits": True}, 70, 0, 69),
        ({"keep_prompt_logits": True}, 64, 0, 63),
        ({"keep_prompt_logits": True}, 64, 40, 63),
        ({}, 64, 40, 64),
    ],
)
def test_positions_whose_logits_are_wanted_are_computed(
    fields: dict[str, object], length: int, generated: int, reused: int
) -> None:
    counted = Counted()
    whole, _ = counted.decode(request("whole", ids(length), 50))
    one = changed(request("second", ids(length), 50, generated=tuple(whole.tokens[:generated])), **fields)
    second, _ = counted.decode(one)
    assert second.cached_tokens == reused
    assert second.tokens == whole.tokens == undisturbed(whole.request)
    assert (second.prompt_logits is not None) == one.keep_prompt_logits


def test_equal_prompts_that_arrive_together_are_computed_once() -> None:
    counted = Counted(slots=8, kv_tokens=8 * 256, prefill_chunk_tokens=32)
    requests = [request(str(seed), ids(130), 10, temperature=1.0, seed=seed) for seed in range(6)]
    other = request("other", ids(50, kind=1), 10)
    sequences = [counted.engine.add_request(one) for one in (*requests, other)]
    run_until_idle(counted.engine)
    assert counted.positions == 130 + 5 * 1 + 50 + 7 * 9
    assert [one.cached_tokens for one in sequences] == [0, 129, 129, 129, 129, 129, 0]
    for sequence in sequences:
        assert sequence.tokens == undisturbed(sequence.request)


@pytest.mark.parametrize("max_tokens", [1, 5])
@pytest.mark.parametrize("system", [0, 64])
def test_answers_of_one_short_prompt_compute_it_once(system: int, max_tokens: int) -> None:
    """Even if the leader ends with its first token, and if the prompt has no whole block that is not known already."""
    counted = Counted(slots=8, kv_tokens=8 * 256)
    if system:
        counted.decode(request("system", ids(system + 1), 1))
    counted.positions = 0
    prompt = (*ids(system), *ids(20, kind=1))
    sequences = [counted.engine.add_request(request(str(number), prompt, max_tokens)) for number in range(6)]
    run_until_idle(counted.engine)
    assert counted.positions == 20 + 5 * 1 + 6 * (max_tokens - 1)
    for sequence in sequences:
        assert sequence.tokens == undisturbed(sequence.request)


def test_a_tenant_s_beginning_is_never_another_s() -> None:
    """Not even if they arrive together: no sequence waits for that of another owner."""
    counted = Counted(prefill_chunk_tokens=1000)
    sequences = [counted.engine.add_request(request(salt, ids(100), 2, cache_salt=salt)) for salt in ("a", "b")]
    counted.engine.step()
    assert [one.cached_tokens for one in sequences] == [0, 0]
    assert counted.positions == 200


def test_a_step_copies_a_limited_number_of_positions() -> None:
    counted = Counted(slots=8, kv_tokens=8 * 256, prefill_chunk_tokens=10)
    sequences = [counted.engine.add_request(request(str(number), ids(68), 3)) for number in range(6)]
    started = []
    while counted.engine.has_work:
        counted.engine.step()
        started.append(sum(one.cached_tokens is not None for one in sequences))
    assert sorted({*started}) == [1, 3, 5, 6], "16 times 10 positions, so two prompts of 68"
    for sequence in sequences:
        assert sequence.tokens == undisturbed(sequence.request)


@pytest.mark.parametrize("ended", ["leader", "dependent"])
@pytest.mark.parametrize("by", ["abort", "deadline"])
def test_the_end_of_a_sequence_does_not_disturb_those_that_wait_with_it(ended: str, by: str) -> None:
    now = 0.0
    counted = Counted(slots=4, prefill_chunk_tokens=32)
    counted.engine._clock = lambda: now
    sequences = [counted.engine.add_request(request(str(number), ids(150), 5)) for number in range(4)]
    one = sequences[0 if ended == "leader" else 1]
    counted.engine.step()
    counted.engine.step()
    assert [other.cached for other in sequences] == [64, 0, 0, 0]
    if by == "abort":
        counted.engine.abort(one.id)
    else:
        one.deadline, now = 1.0, 2.0
    run_until_idle(counted.engine)
    assert one.finish is (FinishReason.CANCELLED if by == "abort" else FinishReason.DEADLINE)
    rest = [other for other in sequences if other is not one]
    assert [other.tokens for other in rest] == [undisturbed(rest[0].request)] * 3
    assert counted.positions == 150 + 2 * 1 + 3 * 4, "what an aborted leader has computed is not lost"


def test_a_failed_sequence_leaves_nothing_behind_and_its_dependents_compute_by_themselves() -> None:
    def fail(batch: Batch, logits: Tensor) -> Tensor:
        if batch.last_position >= 100 and any(chunk.sequence.id == "bad" for chunk in batch.chunks):
            raise RuntimeError("broken")
        return logits

    running = engine(Tampered(model(SEED), fail), slots=4, prefill_chunk_tokens=32)
    bad, good = (running.add_request(request(name, ids(150), 5)) for name in ("bad", "good"))
    run_until_done(running, bad)
    assert bad.finish is FinishReason.ERROR
    run_until_idle(running)
    assert (good.cached_tokens, good.tokens) == (0, undisturbed(good.request))


@pytest.mark.parametrize("load", [model, torch_model, graph_model])
def test_values_that_are_not_finite_are_not_kept(load: Callable[[str], DecodingModel]) -> None:
    running = engine(load(SEED), slots=1, kv_tokens=256)
    broken = running.add_request(request("broken", ids(100), 50))
    while len(broken.tokens) < 5:
        running.step()
    assert broken.extent is not None
    running._cache.memory[..., broken.extent.start : broken.extent.start + broken.cached, :] = torch.nan
    run_until_done(running, broken)
    assert broken.finish is FinishReason.ERROR
    again = decode(running, request("again", ids(100), 8))
    assert (again.cached_tokens, again.tokens) == (0, undisturbed(again.request))


def test_a_suspect_computes_everything_alone_and_others_may_wait_for_it() -> None:
    counted = Counted(slots=4, prefill_chunk_tokens=32)
    counted.decode(request("earlier", ids(100), 4))
    suspect = counted.engine.add_request(request("suspect", ids(130), 6, alone=2))
    other = counted.engine.add_request(request("other", ids(130), 6))
    counted.positions = 0
    while counted.engine.suspect is not None or suspect.cached_tokens is None:
        counted.engine.step()
    assert (suspect.cached_tokens, counted.positions) == (0, 130 + 1)
    run_until_idle(counted.engine)
    assert other.cached_tokens == 129
    assert suspect.tokens == other.tokens == undisturbed(other.request)


def test_a_suspect_never_waits_for_a_sequence_that_it_pauses() -> None:
    running = engine(model(SEED), slots=4, prefill_chunk_tokens=32)
    first = running.add_request(request("first", ids(130), 6))
    running.step()
    suspect = running.add_request(request("suspect", ids(130), 6, alone=3))
    third = running.add_request(request("third", ids(130), 6))
    run_until_idle(running)
    assert first.tokens == suspect.tokens == third.tokens == undisturbed(first.request)


def test_the_conversation_that_was_used_longest_ago_is_given_up_first() -> None:
    counted = Counted(slots=3, kv_tokens=3 * 256)
    for kind in (0, 1, 2, 0, 3):  # 0 is used again before 3 needs a place
        counted.decode(request("one", ids(100, kind), 4))
    assert len(counted.engine._cache.allocator.used) == 3
    for kind, reused in ((3, 99), (0, 99), (2, 99), (1, 0)):
        assert counted.decode(request("again", ids(100, kind), 4))[0].cached_tokens == reused


def test_conversations_that_are_kept_never_keep_others_from_running() -> None:
    """KV memory is less than two contexts, so that extents have different sizes."""
    counted = Counted(slots=3, kv_tokens=448)
    for number in range(40):
        length = 33 + 37 * number % 180
        sequences = [
            counted.engine.add_request(request(f"{number} {part}", ids(length, kind=number % 7), 1 + number % 40))
            for part in range(number % 3 + 1)
        ]
        counted.engine.step()
        assert counted.engine.running == 1 or counted.engine.kv_budget.reserved <= 448
        run_until_idle(counted.engine)
        assert counted.engine.free_kv_tokens == 448
        for sequence in sequences:
            assert sequence.tokens == undisturbed(sequence.request)


def test_the_first_update_tells_how_many_tokens_were_reused() -> None:
    running = engine(model(SEED))
    decode(running, request("first", ids(100), 4))
    running.add_request(request("second", ids(100), 4))
    found = [update.cached_tokens for _ in range(40) if running.has_work for update in running.step().updates]
    assert found == [99, None, None, None]
