"""The verdict on jobs: each kind of wrong is found, and what is right is let pass."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from bench.chaos import verdict as module
from bench.chaos.clients import Ordered
from bench.chaos.follow import Followed
from bench.chaos.verdict import Evidence, Verdict, judge
from bench.undisturbed import Comparison, Written
from tasks.generation import FinishReason
from tasks.job import ErrorCode, Job, JobError, Status
from tasks.token_log import Entry, TokenLog
from tests.helpers.job_objects import QUEUED

DONE = replace(
    QUEUED,
    status=Status.SUCCEEDED,
    attempt=2,
    losses=1,
    tokens=3,
    completion="abc",
    finish_reason=FinishReason.LENGTH,
    position=None,
)
LOG = TokenLog(
    (
        Entry(after=2, k=0, token_ids=(1, 2), pieces=("a", "b")),
        Entry(after=2, k=1, attempt=2),
        Entry(after=3, k=0, token_ids=(3,), pieces=("c",)),
    )
)


class AnyText:
    """Takes every text for the right one; the real comparison has tests of its own."""

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def compare(self, texts: list[Written]) -> Iterator[Comparison]:
        return iter([Comparison("".join(chr(96 + token) for token in text.token_ids), None, 0) for text in texts])


@pytest.fixture(autouse=True)
def any_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "Undisturbed", AnyText)


def of(job: Job | None = DONE, log: TokenLog = LOG, *, known: tuple[str, ...] = (DONE.id,), **order: object) -> Verdict:
    ordered = Ordered(DONE.id, **{"cancelled": False, "final": job, **order})  # type: ignore[arg-type]
    return judge([ordered], {DONE.id: Evidence(job, log)}, known)


def test_a_job_that_was_resumed_is_right() -> None:
    verdict = of(followed=Followed(tokens=3, text="abc", connections=2, done={}))
    assert verdict.spotless, verdict.reasons
    assert (verdict.resumed, verdict.streams, verdict.reconnects) == (1, 1, 1)


@pytest.mark.parametrize(
    ("order", "job"),
    [
        ({}, None),
        ({"gone": True}, DONE),
        ({}, replace(DONE, status=Status.RUNNING)),
        ({}, replace(DONE, status=Status.CANCELLED)),
        ({}, replace(DONE, status=Status.FAILED, error=JobError(ErrorCode.INTERNAL, "", retryable=True))),
        ({}, replace(DONE, status=Status.FAILED, error=JobError(ErrorCode.WORKER_LOST, "", retryable=True))),
        ({"followed": Followed(tokens=3, text="abc")}, DONE),
    ],
)
def test_what_never_ended_or_ended_for_no_reason_is_lost(order: dict[str, object], job: Job | None) -> None:
    verdict = of(job, **order)
    assert verdict.lost == {DONE.id}
    assert not verdict.spotless


def test_what_ended_for_a_reason_is_not_lost() -> None:
    lost = JobError(ErrorCode.WORKER_LOST, "", retryable=True)
    assert of(replace(DONE, status=Status.FAILED, error=lost, losses_in_a_row=3)).spotless
    assert of(replace(DONE, status=Status.CANCELLED), cancelled=True).spotless


def test_what_happened_twice_is_found() -> None:
    twice = TokenLog((*LOG.entries, Entry(after=3, k=1, token_ids=(3,), pieces=("c",))))
    assert of(log=twice).duplicated == {DONE.id}
    assert of(final=replace(DONE, completion="abd")).duplicated == {DONE.id}
    assert of(known=(DONE.id, "job_2")).duplicated == {"job_2"}
    repeated = Followed(tokens=3, text="abc", done={}, repeated=["token event 2-0 begins at 1, before 2"])
    assert of(followed=repeated).duplicated == {DONE.id}


@pytest.mark.parametrize(
    "changed",
    [
        {"log": TokenLog((LOG.entries[0], LOG.entries[2]))},
        {"log": TokenLog((*LOG.entries, Entry(after=5, k=0, token_ids=(5,), pieces=("e",))))},
        {"job": replace(DONE, completion="abd")},
        {"job": replace(DONE, tokens=4)},
        {"shrank": True},
        {"followed": Followed(tokens=2, text="ab", done={})},
        {"followed": Followed(tokens=3, text="abc", done={}, skipped=["attempt 2 begins at 3, behind 2"])},
    ],
)
def test_holes_and_other_texts_are_found(changed: dict[str, object]) -> None:
    verdict = of(**changed)  # type: ignore[arg-type]
    assert verdict.mismatched == {DONE.id}
