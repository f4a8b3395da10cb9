"""Is a text what it would have been without kills, restarts and batch mates?"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

from bench.undisturbed import Comparison, Undisturbed, Written
from tasks.generation import Generation
from tasks.job import Job, Status


def assert_same_text(
    checkpoint: Path, generation: Generation, token_ids: Sequence[int], *, finish_reason: str | None = None
) -> str:
    """The tokens are those of an undisturbed run; at a difference the logits prove a near tie. Returns their text.

    Without `finish_reason` they may be the beginning of that run's.
    """
    comparison = _compare(checkpoint, Written(generation, tuple(token_ids), finish_reason))
    assert comparison.difference is None, comparison
    return comparison.text


def assert_undisturbed(checkpoint: Path, job: Job, token_ids: Sequence[int]) -> None:
    """A job has succeeded with the text that it would have had alone; `token_ids` is its log."""
    assert job.status is Status.SUCCEEDED, job
    assert job.finish_reason is not None
    text = assert_same_text(checkpoint, job.generation, token_ids, finish_reason=job.finish_reason.value)
    assert job.completion == text
    assert job.tokens == len(token_ids)


def _compare(checkpoint: Path, written: Written) -> Comparison:
    (comparison,) = _right(checkpoint).compare([written])
    return comparison


@cache
def _right(checkpoint: Path) -> Undisturbed:
    return Undisturbed(checkpoint, threads=1, rows=1)
