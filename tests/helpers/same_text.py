"""Asserts that a text is the same as without kills, restarts and other sequences in the batch."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

from bench.undisturbed import Undisturbed, Written
from tasks.generation import Generation
from tasks.job import Job, Status
from tasks.token_log import TokenLog

#: Number of texts that are decoded at once.
ROWS = 16


def assert_same_text(checkpoint: Path, generation: Generation, token_ids: Sequence[int]) -> str:
    """Assert that the tokens are the first ones of an undisturbed run. Returns their text.

    At a difference, the logits must show a near tie.
    """
    (comparison,) = _undisturbed(checkpoint).compare([Written(generation, tuple(token_ids), None)])
    assert comparison.difference is None, comparison
    return comparison.text


def assert_same_characters(checkpoint: Path, generation: Generation, text: str) -> None:
    """`assert_same_text` for a text without token ids, of a checkpoint whose tokens are characters."""
    assert assert_same_text(checkpoint, generation, _undisturbed(checkpoint).token_ids(text)) == text


def assert_undisturbed(checkpoint: Path, jobs: Sequence[Job], logs: Sequence[TokenLog]) -> None:
    """Assert that each job has succeeded with the text of an undisturbed run, and that its log holds that text."""
    for job in jobs:
        assert job.status is Status.SUCCEEDED, job
    texts = [Written(job.generation, log.token_ids, job.finish_reason) for job, log in zip(jobs, logs, strict=True)]
    for job, log, comparison in zip(jobs, logs, _undisturbed(checkpoint).compare(texts), strict=True):
        assert comparison.difference is None, (job, comparison)
        assert job.completion == comparison.text == log.text
        assert job.tokens == len(log.token_ids)


@cache
def _undisturbed(checkpoint: Path) -> Undisturbed:
    return Undisturbed(checkpoint, threads=1, rows=ROWS)
