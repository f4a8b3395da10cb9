"""Philox against published vectors, and both samplers against a slow one in plain Python."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bench.slow_sampling import slow_draw
from tests.helpers.samplers import KINDS, TEXT, drawn, native_sampler, sequence, torch_sampler
from worker.engine.philox import UniformStream, philox4x32, uniforms
from worker.engine.sampling.torch_sampler import invert_cdf
from worker.engine.sequence import Sequence

Draw = Callable[[list[list[float]], list[Sequence]], list[int | None]]


@pytest.fixture(scope="module", params=["torch", *KINDS])
def draw(request: pytest.FixtureRequest) -> Draw:
    """A function that draws from logits with one of the samplers."""
    make = torch_sampler if request.param == "torch" else partial(native_sampler, request.param)
    return lambda logits, batch: drawn(make(TEXT), torch.tensor(logits, dtype=torch.float32), batch)


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [  # the test vectors that the authors publish with their code
        ([0] * 4, (0, 0), [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        ([0xFFFFFFFF] * 4, (0xFFFFFFFF, 0xFFFFFFFF), [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            (0xA4093822, 0x299F31D0),
            [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
        ),
    ],
)
def test_philox_gives_the_published_words(counter: list[int], key: tuple[int, int], words: list[int]) -> None:
    assert philox4x32(np.array(counter, dtype=np.uint64)[:, None], key)[:, 0].tolist() == words


def test_the_uniform_numbers_of_a_seed_do_not_depend_on_the_order_of_access() -> None:
    numbers = uniforms(12345, 0, 300)
    stream = UniformStream(12345)
    assert [stream[i] for i in reversed(range(300))] == numbers[::-1]
    assert all(0 <= number < 1 and number * 2**53 == int(number * 2**53) for number in numbers)
    assert abs(sum(numbers) / 300 - 0.5) < 0.06
    assert not set(numbers) & set(uniforms(12346, 0, 300))
    assert not set(numbers) & set(uniforms(12345 + 2**32, 0, 300))


def test_greedy_takes_the_largest_logit_and_of_equal_ones_the_lowest_id(draw: Draw) -> None:
    assert draw([[0, 3, 1, 3, 0, 0, 0, 0]], [sequence()]) == [1]
    assert draw([[2] * 8], [sequence()]) == [0]


def test_ids_without_text_are_drawn_only_with_every_id(draw: Draw) -> None:
    logits = [[0.0, 0, 0, 0, 0, 1, 5, 9]]
    assert draw(logits, [sequence()]) == [6]
    assert draw(logits, [sequence(ignore_eos=True)]) == [5]
    assert draw(logits, [sequence(every_id=True)]) == [7]
    drawn = {draw(logits, [sequence(temperature=50.0, seed=seed)])[0] for seed in range(200)}
    assert drawn == set(range(7))


def test_rows_with_different_candidates_share_a_batch(draw: Draw) -> None:
    batch = [
        sequence(),
        sequence(ignore_eos=True),
        sequence(every_id=True),
        sequence(temperature=0.001, ignore_eos=True),
    ]
    assert draw([[0.0, 0, 0, 0, 0, 1, 5, 9]] * 4, batch) == [6, 5, 7, 5]


def test_top_k_keeps_exactly_k_ids_and_of_equal_logits_the_lowest_ids(draw: Draw) -> None:
    logits = [[1.0, 5, 5, 5, 5, 1, 0, 0]]
    drawn = Counter(draw(logits, [sequence(temperature=1.0, top_k=2, seed=seed)])[0] for seed in range(100))
    assert set(drawn) == {1, 2}
    assert draw(logits, [sequence(temperature=2.0, top_k=1, seed=3)]) == [1]


def test_top_p_keeps_the_fewest_ids_that_reach_it_and_at_least_one(draw: Draw) -> None:
    logits = [[math.log(p) for p in (0.1, 0.4, 0.2, 0.1, 0.1, 0.05, 0.04, 0.01)]]
    drawn = {draw(logits, [sequence(temperature=1.0, top_p=0.59, seed=seed)])[0] for seed in range(100)}
    assert drawn == {1, 2}
    assert {draw(logits, [sequence(temperature=1.0, top_p=0.0, seed=seed)])[0] for seed in range(30)} == {1}


def test_min_p_keeps_ids_with_that_share_of_the_largest_weight(draw: Draw) -> None:
    logits = [[math.log(p) for p in (0.1, 0.4, 0.21, 0.19, 0.05, 0.03, 0.01, 0.01)]]

    def kept(**fields: object) -> set[int | None]:
        return {draw(logits, [sequence(TEXT, (), seed=seed, **fields)])[0] for seed in range(200)}

    assert kept(temperature=1.0, min_p=0.5) == {1, 2}
    assert kept(temperature=1.0, min_p=1.0) == {1}
    assert kept(temperature=1.0, min_p=0.0) == kept(temperature=1.0)
    # A weight is that after the temperature: here its square root.
    assert kept(temperature=2.0, min_p=0.69) == {1, 2}
    assert kept(temperature=2.0, min_p=0.68) == {1, 2, 3}
    # Of what min-p keeps, top-p keeps a share: the first id has 0.66 of it.
    assert kept(temperature=1.0, min_p=0.5, top_p=0.65) == {1}
    assert kept(temperature=1.0, top_p=0.65) == {1, 2, 3}


def test_min_p_of_equal_largest_logits_keeps_all_of_them(draw: Draw) -> None:
    rows = [sequence(temperature=0.7, min_p=1.0, seed=seed) for seed in range(100)]
    assert set(draw([[3.0, 3.0, 2.9, 3.0, 0, 0, 0, 0]] * 100, rows)) == {0, 1, 3}


def test_presence_and_frequency_penalties_count_the_answer_and_not_the_prompt(draw: Draw) -> None:
    logits = [[5.0, 4.5, 4.0, 0, 0, 0, 0, 0]]
    assert draw(logits, [sequence(presence_penalty=0.75, prompt=(0, 0))]) == [0]
    assert draw(logits, [sequence(presence_penalty=0.75, generated=(0,))]) == [1]
    assert draw(logits, [sequence(presence_penalty=0.75, generated=(0, 0, 0, 1, 1))]) == [0]
    assert draw(logits, [sequence(frequency_penalty=0.5, generated=(0, 0, 1))]) == [0]
    assert draw(logits, [sequence(frequency_penalty=0.5, generated=(0, 0, 1, 1))]) == [0]
    assert draw(logits, [sequence(frequency_penalty=0.5, generated=(0, 0, 0, 1, 1))]) == [2]
    assert draw(logits, [sequence(frequency_penalty=-1.0, generated=(2, 2))]) == [2]


def test_a_repetition_penalty_counts_prompt_and_answer_once_each_id(draw: Draw) -> None:
    logits = [[4.0, 3.0, -1.0, -1.5, -9, -9, -9, -9]]
    assert draw(logits, [sequence(repetition_penalty=2.0, prompt=(0, 0, 0))]) == [1]
    assert draw(logits, [sequence(repetition_penalty=2.0, prompt=(5,), generated=(0, 1))]) == [0]
    banned = ((0, -50.0), (1, -50.0))
    assert draw(logits, [sequence(repetition_penalty=2.0, prompt=(2,), logit_bias=banned)]) == [3]


def test_penalties_follow_the_tokens_of_a_sequence(draw: Draw) -> None:
    one = sequence(frequency_penalty=1.0)
    tokens = []
    for _ in range(6):
        [token] = draw([[2.5, 1.75, 1.0, 0, 0, 0, 0, 0]], [one])
        assert token is not None
        one.tokens.append(token)
        tokens.append(token)
    assert tokens == [0, 1, 0, 2, 1, 0]


def test_a_bias_of_100_forces_an_id_and_one_of_minus_100_bans_it(draw: Draw) -> None:
    logits = [[15.0, 0, -15.0, 10.0, 0, 0, 0, 14.0]]
    for temperature in (0.0, 1.0):
        one = partial(sequence, temperature=temperature, seed=7)
        assert draw(logits, [one(logit_bias=((2, 100.0),))]) == [2]
        assert draw(logits, [one(logit_bias=((3, 100.0),), repetition_penalty=10.0, generated=(3,))]) == [3]
        assert draw(logits, [one(logit_bias=((0, -100.0),))]) == [3]
    assert draw(logits, [sequence(logit_bias=((7, 100.0),))]) == [0], "an id that may not be sampled stays forbidden"


def test_ids_that_would_end_the_text_are_out_of_reach_until_it_has_min_tokens(draw: Draw) -> None:
    logits = [[0.0, 1, 2, 0, 0, 0, 5, 9]]
    for temperature in (0.0, 0.001):
        for count, expected in ((0, 1), (2, 1), (3, 7)):
            one = sequence(min_tokens=3, stop_token_ids=(7, 2), generated=(0,) * count, temperature=temperature, seed=1)
            assert draw(logits, [one]) == [expected]
    assert draw(logits, [sequence(min_tokens=1, stop_token_ids=(6,), logit_bias=((6, 100.0),))]) == [2]


def test_stop_token_ids_and_with_tools_those_of_tools_may_be_sampled_without_text(draw: Draw) -> None:
    logits = [[0.0, 0, 0, 0, 0, 1, 5, 9]]
    assert draw(logits, [sequence(stop_token_ids=(7,))]) == [7]
    assert draw(logits, [sequence(tools=True)]) == [7]
    assert draw(logits, [sequence(tools=True, ignore_eos=True, logit_bias=((7, -100.0),))]) == [5]
    assert draw(logits * 3, [sequence(), sequence(tools=True), sequence(ignore_eos=True)]) == [6, 7, 5]


def test_choices_draw_from_independent_numbers_of_one_seed(draw: Draw) -> None:
    choices = [sequence(temperature=1.0, seed=5, choice=choice) for choice in range(100)]
    drawn = draw([[0.0] * 8] * 100, choices)
    assert set(drawn) == set(range(7))
    assert drawn[0] == draw([[0.0] * 8], [sequence(temperature=1.0, seed=5)])[0]
    assert UniformStream(5, 3)[70] == uniforms(5, 70, 1, 3)[0] != uniforms(5, 70, 1)[0]
    assert uniforms(12345, 0, 2) == [0.8202246739383457, 0.002783366622746919]


def test_a_row_that_is_not_finite_does_not_affect_other_rows(draw: Draw) -> None:
    good = [0.0, 1, 0, 0, 0, 0, 0, 0]
    for bad in (math.nan, math.inf, -math.inf):
        logits = [good, [0.0, bad, 0, 0, 0, 0, 0, 0], good]
        for temperature in (0.0, 0.01):
            batch = [sequence(temperature=temperature) for _ in range(3)]
            assert draw(logits, batch) == [1, None, 1]


def test_the_smallest_temperature_is_greedy(draw: Draw) -> None:
    assert draw([[0.0, 15, -15, 3, 0, 0, 0, 0]], [sequence(temperature=5e-324, seed=9)]) == [1]


def test_a_uniform_number_below_one_always_finds_an_id_with_weight() -> None:
    largest = 1 - 2.0**-53
    weights = torch.tensor([[0.0, 1.0, 2.0**-52, 0.0], [1.5, 0, 0, 0], [3e-308, 1e-308, 0, 0]], dtype=torch.float64)
    ids = invert_cdf(weights, torch.full((3,), largest, dtype=torch.float64))
    assert all(weights[row, token] > 0 for row, token in enumerate(ids.tolist()))
    assert invert_cdf(weights, torch.zeros(3, dtype=torch.float64)).tolist() == [1, 0, 0]


def test_the_distribution_is_that_of_the_softmax(draw: Draw) -> None:
    probabilities = (0.5, 0.2, 0.15, 0.1, 0.05)
    logits = [[math.log(p) for p in probabilities] + [-20.0] * 3]
    count = 4000
    rows = [sequence(temperature=1.0, seed=seed) for seed in range(count)]
    drawn = Counter(draw(logits * count, rows))
    for token, p in enumerate(probabilities):
        assert abs(drawn[token] / count - p) < 4 * math.sqrt(p * (1 - p) / count)


rows_of_requests = st.lists(
    st.fixed_dictionaries(
        {
            "temperature": st.sampled_from([0.0, 0.3, 0.8, 1.0, 2.0]),
            "top_k": st.none() | st.integers(1, 12),
            "top_p": st.none() | st.floats(0, 1),
            "min_p": st.none() | st.floats(0, 1),
            # Values with which fp32 is exact, so that equal logits stay equal.
            "presence_penalty": st.none() | st.sampled_from([-0.5, 0.25, 2.0]),
            "frequency_penalty": st.none() | st.sampled_from([-2.0, 0.5, 0.75]),
            "repetition_penalty": st.none() | st.sampled_from([0.5, 1.0, 2.0, 4.0]),
            "logit_bias": st.dictionaries(
                st.integers(0, 7), st.sampled_from([-100.0, -0.5, 0.0, 1.25, 100.0]), max_size=3
            ).map(lambda found: tuple(found.items())),
            "stop_token_ids": st.lists(st.integers(0, 7), max_size=2).map(tuple),
            "min_tokens": st.none() | st.integers(0, 3),
            "choice": st.integers(0, 2**32 - 1),
            "tools": st.booleans(),
            "prompt": st.lists(st.integers(0, 7), min_size=1, max_size=4).map(tuple),
            "seed": st.integers(0, 2**64 - 1),
            "generated": st.lists(st.integers(0, 5), max_size=3).map(tuple),
            "every_id": st.booleans(),
            "ignore_eos": st.booleans(),
        }
    ),
    min_size=1,
    max_size=6,
)


@given(requests=rows_of_requests, data=st.data())
def test_a_batched_sampler_agrees_with_the_slow_one(
    draw: Draw, requests: list[dict[str, object]], data: st.DataObject
) -> None:
    quarter_steps = st.integers(-12, 12).map(lambda n: n / 4)  # equal logits are common
    logits = data.draw(
        st.lists(st.lists(quarter_steps, min_size=8, max_size=8), min_size=len(requests), max_size=len(requests))
    )
    batch = [sequence(**request) for request in requests]  # type: ignore[arg-type]
    for row, token in enumerate(draw(logits, batch)):
        expected = slow_draw(logits[row], batch[row].request, batch[row].tokens, TEXT)
        if expected.share_margin > 1e-12:
            assert token == expected.token
