"""A request gives the same ids alone, in any batch, with or without chunked prefill, with or without a cache.

The rounding of logits depends on the shape of the batch, so two candidates that are closer than that may be swapped.
Each token is therefore compared with the slow references of the model and of the sampler, given the tokens before it. A
difference is allowed only if they prove such a near tie.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from bench.slow_sampling import LOGIT_TIE, slow_draw
from tasks.generation import FinishReason
from tests.helpers.engines import (
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
    vocabulary,
)
from tests.helpers.reference import logits as reference_logits
from tests.helpers.requests import changed, sequence_request
from worker.engine.batch import Batch
from worker.engine.decoding_model import DecodingModel
from worker.engine.engine import Engine
from worker.engine.request import SequenceRequest
from worker.engine.sequence import Sequence

#: Padded rows and full attention; grouped queries, windows, value embeddings and smear.
SEED, E7 = "E1b-seed/step_000102", "E7/step_000101"


def assert_same_as_the_references(folder: str, sequence: Sequence) -> None:
    """Every token is the one that the slow references choose after the tokens before it, except near ties."""
    found, one = checkpoint(folder), sequence.request
    words = vocabulary(found.config)
    tokens = list(sequence.tokens)
    if sequence.stop_id is not None:
        tokens.append(sequence.stop_id)
    if not tokens:
        return
    logits = reference_logits(found.config, found.weights, [*one.prompt, *tokens[:-1]])[len(one.prompt) - 1 :]
    for index, token in enumerate(tokens):
        draw = slow_draw(logits[index].tolist(), one, tokens[:index], words)
        assert token == draw.token or draw.near_tie, f"token {index} of {one}: {token} for {draw}"


@dataclass(frozen=True)
class Arrival:
    """A request, the step before which it arrives, and the step before which it is aborted, if any."""

    request: SequenceRequest
    at: int
    aborted_at: int | None


def arrivals(vocab_size: int) -> st.SearchStrategy[list[Arrival]]:
    requests = st.builds(
        sequence_request,
        id=st.just(""),
        prompt=st.lists(st.integers(0, vocab_size - 1), min_size=1, max_size=70).map(tuple),
        max_tokens=st.integers(1, 14),
        temperature=st.sampled_from([0.0, 0.0, 0.8, 1.5]),
        top_k=st.none() | st.integers(1, 20),
        top_p=st.none() | st.floats(0.1, 1),
        min_p=st.none() | st.floats(0, 0.5),
        presence_penalty=st.none() | st.floats(-2, 2),
        frequency_penalty=st.none() | st.floats(-2, 2),
        repetition_penalty=st.none() | st.floats(0.5, 2),
        logit_bias=st.dictionaries(st.integers(0, vocab_size - 1), st.floats(-5, 5), max_size=3).map(
            lambda found: tuple(found.items())
        ),
        stop_token_ids=st.lists(st.integers(0, vocab_size - 1), max_size=2).map(tuple),
        min_tokens=st.none() | st.integers(0, 20),
        seed=st.integers(0, 2**53 - 1),
        choice=st.sampled_from([0, 0, 1, 127]),
        ignore_eos=st.booleans(),
        stop_on_newline=st.booleans(),
        every_id=st.booleans(),
        alone=st.sampled_from([0, 0, 0, 1, 4]),
    )
    one = st.builds(Arrival, request=requests, at=st.integers(0, 12), aborted_at=st.none() | st.integers(0, 20))
    return st.lists(one, min_size=1, max_size=7).map(
        lambda found: [replace(a, request=replace(a.request, id=str(n))) for n, a in enumerate(found)]
    )


@pytest.mark.parametrize("folder", [SEED, E7])
@pytest.mark.parametrize("load", [model, torch_model, graph_model])
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_any_order_of_arrival_gives_every_sequence_its_own_tokens(
    load: Callable[[str], DecodingModel], folder: str, data: st.DataObject
) -> None:
    """KV memory is scarce, so that sequences wait for each other and the cache is compacted. Chunks have any size."""
    decoding = engine(
        load(folder),
        slots=data.draw(st.integers(1, 5), label="slots"),
        kv_tokens=data.draw(st.sampled_from([96, 128, 160, 256, 4096]), label="kv_tokens"),
        prefill_chunk_tokens=data.draw(st.integers(1, 80), label="chunk"),
    )
    plan = data.draw(arrivals(model(folder).config.vocab_size), label="arrivals")
    sequences: dict[str, Sequence] = {}
    reported: dict[str, list[int]] = {}
    finished: dict[str, FinishReason] = {}
    step = 0
    while decoding.has_work or any(arrival.at >= step for arrival in plan):
        for arrival in plan:
            if arrival.at == step:
                sequences[arrival.request.id] = decoding.add_request(arrival.request)
            if arrival.aborted_at == step:
                decoding.abort(arrival.request.id)
        for update in decoding.step().updates:
            assert update.id not in finished, "no update follows the end of a sequence"
            reported.setdefault(update.id, []).extend(update.tokens)
            if update.finish is not None:
                finished[update.id] = update.finish
        step += 1
    decoding.check_idle()
    for arrival in plan:
        sequence = sequences[arrival.request.id]
        assert finished[arrival.request.id] is sequence.finish
        assert reported[arrival.request.id] == sequence.tokens
        assert sequence.finish in {FinishReason.STOP, FinishReason.NEWLINE, FinishReason.LENGTH} or (
            sequence.finish is FinishReason.CANCELLED and arrival.aborted_at is not None
        )
        assert len(sequence.tokens) == arrival.request.sampling.max_tokens or sequence.finish is not FinishReason.LENGTH
        assert_same_as_the_references(folder, sequence)


@pytest.mark.parametrize("folder", [SEED, E7])
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    prompt=st.lists(st.integers(0, 30), min_size=1, max_size=40).map(tuple),
    temperature=st.sampled_from([0.0, 1.0]),
    seed=st.integers(0, 2**53 - 1),
    split=st.integers(0, 12),
    chunk=st.integers(1, 20),
)
def test_a_resumed_sequence_continues_with_the_same_tokens(
    folder: str, prompt: tuple[int, ...], temperature: float, seed: int, split: int, chunk: int
) -> None:
    whole = request("whole", prompt, 12, temperature=temperature, seed=seed)
    tokens = decode(engine(model(folder)), whole).tokens
    decoding = engine(model(folder), prefill_chunk_tokens=chunk)
    rest = decoding.add_request(replace(whole, generated=tuple(tokens[:split])))
    reported = [token for _ in range(80) if decoding.has_work for u in decoding.step().updates for token in u.tokens]
    assert rest.finish is FinishReason.LENGTH
    assert rest.tokens[:split] == tokens[:split]
    assert reported == rest.tokens[split:], "tokens of earlier attempts are not reported again"
    assert_same_as_the_references(folder, rest)


def test_a_resumed_sequence_with_all_its_tokens_ends_without_a_forward_pass() -> None:
    passes = 0

    def count(batch: Batch, logits: Tensor) -> Tensor:
        nonlocal passes
        passes += 1
        return logits

    decoding = engine(Tampered(model(SEED), count))
    ends = {
        FinishReason.LENGTH: request("length", (1,), 3, generated=(1, 2, 3)),
        FinishReason.NEWLINE: request("newline", (1,), 9, generated=(1, 7), stop_on_newline=True),
        FinishReason.STOP: request("stop", (1,), 9, generated=(1, 2), stop=("bc",)),
    }
    for one in ends.values():
        decoding.add_request(one)
    updates = decoding.step().updates
    assert [(update.id, update.tokens, update.finish) for update in updates] == [
        (one.id, (), finish) for finish, one in ends.items()
    ]
    assert passes == 0
    assert not decoding.has_work


def test_nothing_is_computed_that_is_not_needed() -> None:
    """Each position goes through the model once, the last token never does, and only rows that sample have logits."""
    positions = rows = 0

    def count(batch: Batch, logits: Tensor) -> Tensor:
        nonlocal positions, rows
        positions += len(batch.tokens)
        rows += len(logits)
        return logits

    decoding = engine(Tampered(model(E7), count), prefill_chunk_tokens=7)
    for name, length in (("a", 30), ("b", 1), ("c", 16)):
        decoding.add_request(request(name, (1,) * length, 5))
    run_until_idle(decoding)
    assert positions == (30 + 4) + (1 + 4) + (16 + 4)
    assert rows == 15


def test_a_stop_text_that_began_in_an_earlier_attempt_is_found() -> None:
    words = vocabulary(model(SEED).config)
    one = request("a", (3, 1, 4), 12)
    tokens = decode(engine(model(SEED)), one).tokens
    stop = words.spell(tokens[4:7])
    first = next(n for n in range(13) if stop in words.spell(tokens[:n]))
    for split in range(first):
        resumed = changed(one, stop=(stop.decode(),), generated=tuple(tokens[:split]))
        sequence = decode(engine(model(SEED)), resumed)
        assert (sequence.finish, sequence.tokens) == (FinishReason.STOP, tokens[:first])


def steer(*script: int) -> Tampered:
    """A model that generates `script` after a prompt of one token."""

    def choose(batch: Batch, logits: Tensor) -> Tensor:
        for row, output in enumerate(batch.outputs):
            logits[row] = 0
            logits[row, script[len(output.sequence.tokens)]] = 9
        return logits

    return Tampered(model(SEED), choose)


def test_a_stop_id_ends_the_text_and_is_not_part_of_it() -> None:
    stop = next(iter(vocabulary(model(SEED).config).stop_ids))
    ended = decode(engine(steer(5, 6, stop, 5)), request("a", (1,), 4, ignore_eos=False))
    assert (ended.finish, ended.tokens) == (FinishReason.STOP, [5, 6])
    ignored = decode(engine(steer(5, 6, stop, 5)), request("a", (1,), 4))
    assert (ignored.finish, ignored.tokens) == (FinishReason.LENGTH, [5, 6, 0, 5])
    every = decode(engine(steer(5, 6, stop, 5)), request("a", (1,), 4, every_id=True))
    assert (every.finish, every.tokens) == (FinishReason.LENGTH, [5, 6, stop, 5])


def test_the_newline_of_stop_on_newline_is_the_last_token() -> None:
    newline = 7
    ended = decode(engine(steer(5, newline, 6, 6)), request("a", (1,), 4, stop_on_newline=True))
    assert (ended.finish, ended.tokens) == (FinishReason.NEWLINE, [5, newline])
    kept = decode(engine(steer(5, newline, 6, 6)), request("a", (1,), 4))
    assert (kept.finish, kept.tokens) == (FinishReason.LENGTH, [5, newline, 6, 6])


def test_fragmented_memory_is_compacted() -> None:
    decoding = engine(model(E7), slots=3, kv_tokens=96)
    short = [decoding.add_request(request(name, (1, 2, 3), length)) for name, length in (("a", 3), ("b", 20), ("c", 3))]
    long = decoding.add_request(request("long", tuple(range(40)), 10))
    run_until_done(decoding, short[0])
    assert short[1].finish is None
    assert long.extent is None
    decoding.step()
    assert long.extent is not None, "a sequence that fits the free memory is admitted at once"
    run_until_idle(decoding)
    for sequence in (*short, long):
        assert_same_as_the_references(E7, sequence)


def test_aborting_frees_the_row_and_keeps_the_tokens() -> None:
    decoding = engine(model(SEED), slots=1)
    running, waiting, next_one = (decoding.add_request(request(name, (1, 2), 40)) for name in "abc")
    for _ in range(3):
        decoding.step()
    for sequence_id in (running.id, waiting.id, "unknown"):
        decoding.abort(sequence_id)
    updates = {update.id: update for update in decoding.step().updates}
    assert (updates["a"].tokens, updates["a"].finish) == ((), FinishReason.CANCELLED)
    assert updates["b"].finish is FinishReason.CANCELLED
    assert len(updates["c"].tokens) == 1, "the free row is used in the same step"
    assert (len(running.tokens), waiting.tokens) == (3, [])
    decoding.abort(next_one.id)
    run_until_idle(decoding)
    assert decoding.free_kv_tokens == decoding.kv_budget.capacity


def test_a_time_limit_ends_running_and_waiting_sequences() -> None:
    now = 100.0
    decoding = engine(model(SEED), slots=1, clock=lambda: now)
    running = decoding.add_request(request("a", (1, 2), 40, time_limit_s=5.0))
    waiting = decoding.add_request(request("b", (1, 2), 40, time_limit_s=3.0))
    unlimited = decoding.add_request(request("c", (1, 2), 4))
    decoding.step()
    now = 103.0
    decoding.step()
    assert (running.finish, waiting.finish) == (None, FinishReason.DEADLINE)
    now = 105.0
    decoding.step()
    assert (running.finish, len(running.tokens)) == (FinishReason.DEADLINE, 2)
    assert run_until_done(decoding, unlimited).finish is FinishReason.LENGTH


def test_the_logits_after_the_prompt_are_kept_even_if_a_sequence_is_resumed() -> None:
    found = checkpoint(E7)
    prompt = tuple(range(20))
    expected = reference_logits(found.config, found.weights, list(prompt))[-1]
    for generated in ((), (4, 5, 6)):
        one = request("a", prompt, 6, generated=generated, keep_prompt_logits=True)
        for chunk in (1, 20, 21, 100):
            sequence = decode(engine(model(E7), prefill_chunk_tokens=chunk), one)
            torch.testing.assert_close(torch.tensor(sequence.prompt_logits), expected, atol=LOGIT_TIE, rtol=0)
    assert decode(engine(model(E7)), request("b", prompt, 2)).prompt_logits is None


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"prompt": ()}, "the prompt has no tokens"),
        ({"prompt": (1, 32)}, "between 0 and 31"),
        ({"prompt": (-1,)}, "between 0 and 31"),
        ({"max_tokens": 0}, "at least 1"),
        ({"prompt": (1,) * 250, "max_tokens": 7}, "exceed the context of 256"),
        ({"prompt": (1,) * 150, "max_tokens": 100}, "there is room for 224"),
        ({"generated": (1,) * 9}, "more than max_tokens 8"),
        ({"generated": (77,)}, "between 0 and 31"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"temperature": float("inf")}, "temperature"),
        ({"top_k": 0}, "top_k"),
        ({"top_p": 1.01}, "top_p"),
        ({"top_p": float("nan")}, "top_p"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**64}, "seed"),
        ({"temperature": 0.5, "seed": None}, "a temperature above 0 needs a seed"),
        ({"choice": -1}, "choice"),
        ({"choice": 2**32}, "choice"),
        ({"min_p": 1.1}, "min_p"),
        ({"min_p": float("nan")}, "min_p"),
        ({"presence_penalty": float("inf")}, "presence_penalty"),
        ({"frequency_penalty": float("nan")}, "frequency_penalty"),
        ({"repetition_penalty": 0.0}, "repetition_penalty"),
        ({"repetition_penalty": float("inf")}, "repetition_penalty"),
        ({"logit_bias": ((3, 1.0), (32, 1.0))}, "logit_bias names the id 32, and ids are between 0 and 31"),
        ({"logit_bias": ((-1, 1.0),)}, "logit_bias names the id -1"),
        ({"logit_bias": ((3, float("nan")),)}, "logit_bias of the id 3"),
        ({"stop_token_ids": (3, 32)}, "stop_token_ids has the id 32"),
        ({"min_tokens": -1}, "min_tokens"),
        ({"logprobs": -1}, "logprobs"),
        ({"prompt_logprobs": -1}, "prompt_logprobs"),
        ({"stop": ("",)}, "must not be empty"),
        ({"id": "taken"}, "already a sequence 'taken'"),
    ],
)
def test_a_request_that_can_never_run_is_refused_and_leaves_no_trace(fields: dict[str, object], message: str) -> None:
    decoding = engine(model(SEED), kv_tokens=224)
    decoding.add_request(request("taken"))
    with pytest.raises(ValueError, match=message):
        decoding.add_request(changed(request("a"), **fields))
    run_until_idle(decoding)


def test_a_vocabulary_without_text_needs_every_id() -> None:
    words = vocabulary(model(SEED).config)
    bare = type(words).without_text(words.size)
    decoding = Engine(model(SEED), bare, slots=1, kv_tokens=256, prefill_chunk_tokens=8)
    with pytest.raises(ValueError, match="no id with text"):
        decoding.add_request(request("a"))
    assert len(decode(decoding, request("a", every_id=True)).tokens) == 8


def test_a_vocabulary_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match="has 5 ids and the model 32"):
        Engine(
            model(SEED), vocabulary(model(E7).config).without_text(5), slots=1, kv_tokens=256, prefill_chunk_tokens=8
        )
