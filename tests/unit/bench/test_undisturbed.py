"""The comparison with an undisturbed run: what it lets pass, and what not."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bench.engine import slow_sampling
from bench.undisturbed import Undisturbed, Written
from tests.helpers.engines import GOLDEN
from tests.helpers.requests import make_generation
from worker.local import LocalModel

TINY = GOLDEN / "E1b-seed" / "step_000102"
GENERATIONS = [
    make_generation(prompt="12+3=", max_tokens=40, temperature=temperature, seed=seed, ignore_eos=seed != 2, stop=stop)
    for seed, temperature, stop in [(1, 0.0, ()), (2, 0.8, ()), (3, 0.8, ()), (4, 1.5, ("9",))]
]


@pytest.fixture(scope="module")
def right() -> Undisturbed:
    return Undisturbed(TINY, threads=1)


@pytest.fixture(scope="module")
def texts() -> list[Written]:
    """What the engine of `celeriac run` says to each."""
    model = LocalModel.load(str(TINY), TINY.parent, device="cpu", threads=1)
    written = []
    for one in GENERATIONS:
        answer = model.generate(model.encode(one.prompt)[0], one.sampling)
        written.append(Written(one, answer.token_ids, answer.finish_reason.value))
    return written


def test_equal_texts_and_beginnings_of_them_pass(right: Undisturbed, texts: list[Written]) -> None:
    beginnings = [replace(text, token_ids=text.token_ids[:5], finish_reason=None) for text in texts]
    for comparison in right.compare([*texts, *beginnings]):
        assert (comparison.difference, comparison.near_ties) == (None, 0)


def test_another_token_an_early_end_and_a_late_one_are_found(right: Undisturbed, texts: list[Written]) -> None:
    text = texts[0]
    other = (text.token_ids[5] + 1) % 10
    wrong = [
        replace(text, token_ids=(*text.token_ids[:5], other, *text.token_ids[6:])),
        replace(text, token_ids=text.token_ids[:-3]),
        replace(text, token_ids=(*text.token_ids, other)),
        replace(text, finish_reason="stop"),
    ]
    places = [5, len(text.token_ids) - 3, len(text.token_ids), len(text.token_ids)]
    for comparison, place in zip(right.compare(wrong), places, strict=True):
        assert (comparison.difference or "").startswith(f"token {place} is"), comparison


def test_behind_a_near_tie_the_other_way_is_the_right_one(
    right: Undisturbed, texts: list[Written], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = texts[0]
    other = (text.token_ids[5] + 1) % 10
    turned = replace(text, token_ids=(*text.token_ids[:5], other), finish_reason=None)
    monkeypatch.setattr(slow_sampling, "LOGIT_TIE", 1e3)
    (comparison,) = right.compare([turned])
    assert (comparison.difference, comparison.near_ties) == (None, 1)
    # An end is no near tie where nothing may end the text.
    (comparison,) = right.compare([replace(text, token_ids=text.token_ids[:-3])])
    assert comparison.difference is not None
    # What follows the other token is compared as well.
    monkeypatch.setattr(slow_sampling, "LOGIT_TIE", 1e-3)
    (comparison,) = right.compare([replace(text, token_ids=(*text.token_ids[:5], other, *text.token_ids[6:]))])
    assert comparison.difference is not None
