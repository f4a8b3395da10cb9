"""Log-probabilities of generated tokens and of prompts: alone, in a batch, resumed, in chunks, and in reports."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from dataclasses import replace as replaced

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tasks.generation import FinishReason
from tasks.logprobs import TokenLogprob, TokenLogprobs, unpack
from tests.helpers.engines import (
    Tampered,
    checkpoint,
    engine,
    graph_model,
    model,
    request,
    torch_model,
    vocabulary,
)
from tests.helpers.reference import logits as reference_logits
from tests.helpers.requests import changed
from worker.engine.batch import Batch
from worker.engine.decoding_model import DecodingModel
from worker.engine.engine import Engine
from worker.engine.native.library import library
from worker.engine.request import SequenceRequest
from worker.engine.sampling.logprobs import highest
from worker.engine.update import Update

SEED, E7 = "E1b-seed/step_000102", "E7/step_000101"
#: Largest difference from a float of the slow reference, and on torch from one of another batch.
TOLERANCE = 1e-4
#: On torch, rounding depends on the shape of the batch.
INVARIANT = pytest.mark.skipif(library() is None, reason="no C compiler, or no kernels for this processor")


@dataclass
class Report:
    """All updates of one sequence, joined."""

    tokens: tuple[int, ...]
    logprobs: tuple[TokenLogprobs, ...]
    prompt_logprobs: tuple[TokenLogprobs, ...]
    finish: FinishReason | None
    stop_id: int | None


def run(decoding: Engine, *requests: SequenceRequest, hold: bool = False) -> dict[str, Report]:
    """Decode the requests together. `hold`: updates wait for the next report whenever they may."""
    for one in requests:
        decoding.add_request(one)
    updates: dict[str, list[Update]] = {one.id: [] for one in requests}
    while decoding.has_work:
        for update in decoding.step(hold_until=math.inf if hold else -math.inf).updates:
            updates[update.id].append(update)
    return {one.id: joined(one, updates[one.id]) for one in requests}


def joined(one: SequenceRequest, updates: list[Update]) -> Report:
    """The updates of one request. Each has as many records as tokens, and one more for the stop token."""
    sampling = one.sampling
    for update in updates:
        count = len(update.tokens) + (update.stop_id is not None)
        assert len(unpack(update.logprobs, sampling.logprobs or 0)) == (0 if sampling.logprobs is None else count)
    with_prompt = [number for number, update in enumerate(updates) if update.prompt_logprobs]
    assert with_prompt in ([], [0])
    last = updates[-1]
    return Report(
        tokens=tuple(token for update in updates for token in update.tokens),
        logprobs=unpack(b"".join(update.logprobs for update in updates), sampling.logprobs or 0),
        prompt_logprobs=unpack(updates[0].prompt_logprobs, sampling.prompt_logprobs or 0),
        finish=last.finish,
        stop_id=last.stop_id,
    )


def expected_logprobs(folder: str, ids: list[int], first: int) -> Tensor:
    """The reference's log-probabilities (n, V) for the tokens of `ids` from `first` on."""
    found = checkpoint(folder)
    return reference_logits(found.config, found.weights, ids[:-1]).log_softmax(1)[first - 1 :]


def assert_near(items: tuple[TokenLogprobs, ...], expected: Tensor, tokens: tuple[int, ...], alternatives: int) -> None:
    """The records of `tokens` have the reference's log-probabilities."""
    assert [item.chosen.token_id for item in items] == list(tokens)
    for item, row in zip(items, expected, strict=True):
        assert len(item.top) == min(alternatives, len(row))
        for pair in (item.chosen, *item.top):
            assert math.isclose(pair.logprob, float(row[pair.token_id]), abs_tol=TOLERANCE)
            if pair.token_id == item.chosen.token_id:
                assert pair == item.chosen
        best = row.topk(len(item.top)).values.tolist()
        assert all(
            math.isclose(pair.logprob, value, abs_tol=TOLERANCE) for pair, value in zip(item.top, best, strict=True)
        )


@pytest.mark.parametrize("folder", [SEED, E7])
@pytest.mark.parametrize("load", [model, torch_model, graph_model])
@pytest.mark.parametrize("hold", [False, True])
def test_they_are_those_of_the_reference_whatever_the_sampling_fields_change(
    load: Callable[[str], DecodingModel], folder: str, hold: bool
) -> None:
    prompt = (3, 1, 4, 1, 5, 9, 2, 6)
    one = request(
        "a",
        prompt,
        9,
        temperature=1.3,
        top_k=9,
        seed=5,
        repetition_penalty=1.5,
        logit_bias=((3, 2.5),),
        logprobs=3,
        prompt_logprobs=2,
    )
    found = run(engine(load(folder), prefill_chunk_tokens=3), one, hold=hold)["a"]
    ids = [*prompt, *found.tokens]
    assert len(found.tokens) == 9
    assert_near(found.logprobs, expected_logprobs(folder, ids, len(prompt)), found.tokens, 3)
    assert_near(found.prompt_logprobs, expected_logprobs(folder, list(prompt), 1), prompt[1:], 2)


@INVARIANT
@pytest.mark.parametrize("folder", [SEED, E7])
@pytest.mark.parametrize("chunk", [1, 5, 16, 100])
def test_a_token_has_the_same_float_as_part_of_a_prompt_and_as_generated_token(folder: str, chunk: int) -> None:
    prompt = (3, 1, 4, 1, 5, 9, 2, 6)
    generated = run(engine(model(folder)), request("a", prompt, 24, logprobs=4))["a"]
    whole = request("b", prompt + generated.tokens, 1, prompt_logprobs=4)
    scored = run(engine(model(folder), prefill_chunk_tokens=chunk), whole)["b"]
    assert scored.prompt_logprobs[len(prompt) - 1 :] == generated.logprobs


@INVARIANT
@pytest.mark.parametrize("folder", [SEED, E7])
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_a_batch_and_a_resumed_attempt_have_the_same_tokens_and_floats(folder: str, data: st.DataObject) -> None:
    requests = [
        request(
            str(number),
            tuple(data.draw(st.lists(st.integers(0, 30), min_size=1, max_size=20), label="prompt")),
            10,
            temperature=data.draw(st.sampled_from([0.0, 0.9])),
            seed=number,
            choice=data.draw(st.sampled_from([0, 3])),
            min_p=data.draw(st.sampled_from([None, 0.05])),
            logprobs=data.draw(st.none() | st.integers(0, 5)),
            prompt_logprobs=data.draw(st.none() | st.integers(0, 5)),
            presence_penalty=data.draw(st.sampled_from([None, 0.7])),
            frequency_penalty=data.draw(st.sampled_from([None, 0.4])),
            repetition_penalty=data.draw(st.sampled_from([None, 1.3])),
            logit_bias=data.draw(st.sampled_from([(), ((3, 2.0), (5, -1.0))])),
            stop_token_ids=data.draw(st.sampled_from([(), (3, 4, 5, 6)])),
            min_tokens=data.draw(st.sampled_from([None, 6])),
            ignore_eos=data.draw(st.booleans()),
        )
        for number in range(3)
    ]
    alone = {one.id: run(engine(model(folder)), one)[one.id] for one in requests}
    together = run(engine(model(folder), prefill_chunk_tokens=7), *requests, hold=True)
    assert together == alone
    for one in requests:
        whole = alone[one.id]
        split = data.draw(st.integers(0, len(whole.tokens)), label="split")
        resumed = run(engine(model(folder), prefill_chunk_tokens=5), replaced(one, generated=whole.tokens[:split]))[
            one.id
        ]
        ended = split == one.sampling.max_tokens
        assert resumed == replaced(
            whole,
            tokens=whole.tokens[split:],
            logprobs=whole.logprobs[split:],
            prompt_logprobs=() if ended else whole.prompt_logprobs,
        )


def constant(*logits: float) -> Tampered:
    """A model with the same logits after each token: `logits`, and -9 for all other ids."""

    def choose(_: Batch, rows: Tensor) -> Tensor:
        rows[:] = -9
        rows[:, : len(logits)] = torch.tensor(logits)
        return rows

    return Tampered(model(SEED), choose)


def test_of_equal_logits_the_lower_ids_come_first() -> None:
    one = request("a", (1, 2), 1, logprobs=4, prompt_logprobs=4)
    found = run(engine(constant(0, 3, 3, 1, 3, 3)), one)["a"]
    assert [pair.token_id for pair in found.logprobs[0].top] == [1, 2, 4, 5]
    assert [pair.token_id for pair in found.prompt_logprobs[0].top] == [1, 2, 4, 5]


def test_the_stop_token_has_a_record_and_is_no_token() -> None:
    stop = next(iter(vocabulary(model(SEED).config).stop_ids))
    likely = [0.0] * stop + [5.0]
    found = run(engine(constant(*likely)), request("a", (1,), 5, ignore_eos=False, logprobs=1, min_tokens=2))["a"]
    assert (found.tokens, found.stop_id, found.finish) == ((0, 0), stop, FinishReason.STOP)
    assert [item.chosen.token_id for item in found.logprobs] == [0, 0, stop]
    assert {item.top[0].token_id for item in found.logprobs} == {stop}
    asked = run(engine(constant(*likely)), request("b", (1,), 5, stop_token_ids=(stop,), logprobs=0))["b"]
    assert (asked.tokens, asked.stop_id, len(asked.logprobs)) == ((), stop, 1)


def test_a_vocabulary_with_fewer_ids_than_alternatives_gives_all_of_them() -> None:
    size = model(SEED).config.vocab_size
    decoding = engine(model(SEED))
    found = run(decoding, request("a", (1, 2, 3), 2, logprobs=size + 5, prompt_logprobs=size + 5))["a"]
    for item in (*found.logprobs, *found.prompt_logprobs):
        assert sorted(pair.token_id for pair in item.top) == list(range(size))
        assert math.isclose(math.fsum(math.exp(pair.logprob) for pair in item.top), 1, abs_tol=1e-5)


def test_a_forced_token_is_certain() -> None:
    decoding = engine(model(SEED))
    sequence = decoding.add_request(request("a", (1, 2), 5, logprobs=2))
    silent = decoding.add_request(request("b", (1, 2), 5))
    for one in (sequence, silent):
        one.add_forced(7)
    updates = {update.id: update for update in decoding.step().updates}
    assert updates["a"].tokens[0] == 7
    assert unpack(updates["a"].logprobs, 2)[0] == TokenLogprobs(TokenLogprob(7, 0.0), ())
    assert (updates["b"].tokens[0], updates["b"].logprobs) == (7, b"")


def test_no_step_holds_more_rows_than_a_chunk_of_the_prompt() -> None:
    rows: list[int] = []

    def count(batch: Batch, logits: Tensor) -> Tensor:
        rows.append(len(logits))
        return logits

    prompt = tuple(range(30))
    found = run(engine(Tampered(model(E7), count), prefill_chunk_tokens=8), request("a", prompt, 3, prompt_logprobs=0))
    assert len(found["a"].prompt_logprobs) == 29
    assert rows == [8, 8, 8, 6, 1, 1]


def test_a_prompt_that_is_cancelled_half_way_has_no_records() -> None:
    decoding = engine(model(E7), prefill_chunk_tokens=8)
    one = request("a", tuple(range(30)), 3, prompt_logprobs=0)
    decoding.add_request(one)
    decoding.step()
    decoding.abort("a")
    [update] = decoding.step().updates
    assert (update.finish, update.prompt_logprobs) == (FinishReason.CANCELLED, b"")


def test_the_logits_after_the_prompt_are_kept_as_the_model_gave_them() -> None:
    one = request("a", (1, 2, 3), 2, keep_prompt_logits=True, prompt_logprobs=1, logprobs=1, logit_bias=((0, 50.0),))
    plain = request("b", (1, 2, 3), 2, keep_prompt_logits=True)
    decoding = engine(model(E7))
    sequences = [decoding.add_request(each) for each in (one, plain)]
    while decoding.has_work:
        decoding.step()
    assert sequences[0].prompt_logits == sequences[1].prompt_logits
    assert sequences[0].tokens == [0, 0]


@pytest.mark.parametrize("size", [1, 6, 64, 65, 700, 5000])
def test_the_highest_are_found_in_the_order_of_a_stable_sort(size: int) -> None:
    generator = torch.Generator().manual_seed(size)
    for distinct in (1, 2, 50, 10**6):
        values = torch.randn(distinct, generator=generator) * 9
        logits = values[torch.randint(distinct, (3, size), generator=generator)]
        logits[0, :: max(1, size // 3)] = -0.0
        logits[1, :: max(1, size // 3)] = 0.0
        for count in {0, 1, min(20, size), size}:
            expected = logits.sort(dim=1, descending=True, stable=True).indices[:, :count]
            assert highest(logits, count).equal(expected)


def test_a_request_with_them_does_not_disturb_its_neighbours() -> None:
    quiet = request("quiet", (5, 6, 7), 12, temperature=1.0, seed=3)
    loud = changed(quiet, id="loud", logprobs=20, prompt_logprobs=20, logit_bias=((9, 3.0),), min_tokens=4)
    alone = run(engine(model(E7)), quiet)["quiet"].tokens
    assert run(engine(model(E7)), loud, quiet)["quiet"].tokens == alone
