"""`check_jobs` finds each kind of fault of a job, and accepts jobs without faults."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from bench.chaos import findings as module
from bench.chaos.clients import AcceptedJob
from bench.chaos.findings import Findings, StoredJob, check_jobs
from bench.chaos.stream_reader import StreamRecord
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
    """Accepts every text. The real comparison has its own tests."""

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def compare(self, texts: list[Written]) -> Iterator[Comparison]:
        return iter([Comparison("".join(chr(96 + token) for token in text.token_ids), None, 0) for text in texts])


@pytest.fixture(autouse=True)
def any_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "Undisturbed", AnyText)


def check(
    record: Job | None = DONE, log: TokenLog = LOG, *, known: tuple[str, ...] = (DONE.id,), **observed: object
) -> Findings:
    """Check one job. `observed` are fields of its `AcceptedJob`."""
    job = AcceptedJob(DONE.id, **{"cancelled": False, "final": record, **observed})  # type: ignore[arg-type]
    return check_jobs([job], {DONE.id: StoredJob(record, log)}, known)


def test_a_resumed_job_passes() -> None:
    findings = check(stream=StreamRecord(tokens=3, text="abc", connections=2, done={}))
    assert findings.passed, findings.reasons
    assert (findings.resumed, findings.streams, findings.reconnects) == (1, 1, 1)


@pytest.mark.parametrize(
    ("observed", "record"),
    [
        ({}, None),
        ({"gone": True}, DONE),
        ({}, replace(DONE, status=Status.RUNNING)),
        ({}, replace(DONE, status=Status.CANCELLED)),
        ({}, replace(DONE, status=Status.FAILED, error=JobError(ErrorCode.INTERNAL, "", retryable=True))),
        ({}, replace(DONE, status=Status.FAILED, error=JobError(ErrorCode.WORKER_LOST, "", retryable=True))),
        ({"stream": StreamRecord(tokens=3, text="abc")}, DONE),
    ],
)
def test_a_job_without_an_end_or_without_a_reason_for_its_end_is_lost(
    observed: dict[str, object], record: Job | None
) -> None:
    findings = check(record, **observed)
    assert findings.lost == {DONE.id}
    assert not findings.passed


def test_a_job_that_ended_for_a_valid_reason_passes() -> None:
    lost = JobError(ErrorCode.WORKER_LOST, "", retryable=True)
    assert check(replace(DONE, status=Status.FAILED, error=lost, losses_in_a_row=3)).passed
    assert check(replace(DONE, status=Status.CANCELLED), cancelled=True).passed


def test_repeated_tokens_results_and_jobs_are_duplicates() -> None:
    twice = TokenLog((*LOG.entries, Entry(after=3, k=1, token_ids=(3,), pieces=("c",))))
    assert check(log=twice).duplicated == {DONE.id}
    assert check(final=replace(DONE, completion="abd")).duplicated == {DONE.id}
    assert check(known=(DONE.id, "job_2")).duplicated == {"job_2"}
    repeated = StreamRecord(tokens=3, text="abc", done={}, repeated=["token event 2-0 begins at 1, expected 2"])
    assert check(stream=repeated).duplicated == {DONE.id}


@pytest.mark.parametrize(
    "changed",
    [
        {"log": TokenLog((LOG.entries[0], LOG.entries[2]))},
        {"log": TokenLog((*LOG.entries, Entry(after=5, k=0, token_ids=(5,), pieces=("e",))))},
        {"record": replace(DONE, completion="abd")},
        {"record": replace(DONE, tokens=4)},
        {"shrank": True},
        {"stream": StreamRecord(tokens=2, text="ab", done={})},
        {"stream": StreamRecord(tokens=3, text="abc", done={}, skipped=["attempt 2 begins at 3, expected 2"])},
    ],
)
def test_gaps_and_different_texts_are_mismatches(changed: dict[str, object]) -> None:
    findings = check(**changed)  # type: ignore[arg-type]
    assert findings.mismatched == {DONE.id}
