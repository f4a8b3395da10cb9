"""`Undisturbed.compare` accepts equal texts and near ties, and finds other differences."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bench import slow_sampling
from bench.undisturbed import Undisturbed, Written
from tasks.generation import FinishReason
from tests.helpers.engines import GOLDEN
from tests.helpers.requests import make_generation
from worker.local import LocalModel

TINY = GOLDEN / "E1b-seed" / "step_000102"
GENERATIONS = [
    make_generation(prompt="12+3=", max_tokens=40, temperature=temperature, seed=seed, ignore_eos=seed != 2, stop=stop)
    for seed, temperature, stop in [(1, 0.0, ()), (2, 0.8, ()), (3, 0.8, ()), (4, 1.5, ("9",))]
]


@pytest.fixture(scope="module")
def undisturbed() -> Undisturbed:
    return Undisturbed(TINY, threads=1)


@pytest.fixture(scope="module")
def texts() -> list[Written]:
    """The texts that the engine of `celeriac run` generates."""
    model = LocalModel.load(str(TINY), TINY.parent, device="cpu", threads=1)
    written = []
    for generation in GENERATIONS:
        answer = model.generate(model.encode(generation.prompt)[0], generation.sampling)
        written.append(Written(generation, answer.token_ids, answer.finish_reason))
    return written


def test_equal_texts_and_beginnings_of_them_pass(undisturbed: Undisturbed, texts: list[Written]) -> None:
    beginnings = [replace(text, token_ids=text.token_ids[:5], finish_reason=None) for text in texts]
    for comparison in undisturbed.compare([*texts, *beginnings]):
        assert (comparison.difference, comparison.near_ties) == (None, 0)


def test_another_token_an_early_end_and_a_late_one_are_found(undisturbed: Undisturbed, texts: list[Written]) -> None:
    text = texts[0]
    other = (text.token_ids[5] + 1) % 10
    wrong = [
        replace(text, token_ids=(*text.token_ids[:5], other, *text.token_ids[6:])),
        replace(text, token_ids=text.token_ids[:-3]),
        replace(text, token_ids=(*text.token_ids, other)),
        replace(text, finish_reason=FinishReason.STOP),
    ]
    places = [5, len(text.token_ids) - 3, len(text.token_ids), len(text.token_ids)]
    for comparison, place in zip(undisturbed.compare(wrong), places, strict=True):
        assert (comparison.difference or "").startswith(f"token {place} is"), comparison


def test_after_a_near_tie_the_other_token_counts_as_right(
    undisturbed: Undisturbed, texts: list[Written], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = texts[0]
    other = (text.token_ids[5] + 1) % 10
    changed = replace(text, token_ids=(*text.token_ids[:5], other), finish_reason=None)
    monkeypatch.setattr(slow_sampling, "LOGIT_TIE", 1e3)
    (comparison,) = undisturbed.compare([changed])
    assert (comparison.difference, comparison.near_ties) == (None, 1)
    # An end is not a near tie if nothing may end the text.
    (comparison,) = undisturbed.compare([replace(text, token_ids=text.token_ids[:-3])])
    assert comparison.difference is not None
    # The tokens after the other token are compared, too.
    monkeypatch.setattr(slow_sampling, "LOGIT_TIE", 1e-3)
    (comparison,) = undisturbed.compare([replace(text, token_ids=(*text.token_ids[:5], other, *text.token_ids[6:]))])
    assert comparison.difference is not None
