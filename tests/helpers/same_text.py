"""Is a text what it would have been without kills, restarts and batch mates?"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

from bench.undisturbed import Undisturbed, Written
from tasks.generation import Generation
from tasks.job import Job, Status
from tasks.token_log import TokenLog

#: Texts that are decoded at once.
ROWS = 16


def assert_same_text(checkpoint: Path, generation: Generation, token_ids: Sequence[int]) -> str:
    """The tokens begin an undisturbed run's; at a difference the logits prove a near tie. Returns their text."""
    (comparison,) = _right(checkpoint).compare([Written(generation, tuple(token_ids), None)])
    assert comparison.difference is None, comparison
    return comparison.text


def assert_same_characters(checkpoint: Path, generation: Generation, text: str) -> None:
    """`assert_same_text` for who has the text alone, of a checkpoint whose tokens are characters."""
    assert assert_same_text(checkpoint, generation, _right(checkpoint).token_ids(text)) == text


def assert_undisturbed(checkpoint: Path, jobs: Sequence[Job], logs: Sequence[TokenLog]) -> None:
    """Each job has succeeded with the text that it would have had alone, and its log tells the same."""
    for job in jobs:
        assert job.status is Status.SUCCEEDED, job
    texts = [Written(job.generation, log.token_ids, job.finish_reason) for job, log in zip(jobs, logs, strict=True)]
    for job, log, comparison in zip(jobs, logs, _right(checkpoint).compare(texts), strict=True):
        assert comparison.difference is None, (job, comparison)
        assert job.completion == comparison.text == log.text
        assert job.tokens == len(log.token_ids)


@cache
def _right(checkpoint: Path) -> Undisturbed:
    return Undisturbed(checkpoint, threads=1, rows=ROWS)
