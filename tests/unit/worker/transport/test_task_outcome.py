"""The ends of task bodies, for each end of a job."""

from __future__ import annotations

import pytest
from celery.exceptions import Ignore, Terminated

from tasks.job import Status
from tasks.store.worker_store import Ended
from worker.transport.task_outcome import EXPECTED, JobFailedError, end_task


def test_a_job_that_has_succeeded_is_a_task_that_returns() -> None:
    end_task(Ended(Status.SUCCEEDED, ""))


@pytest.mark.parametrize("status", [Status.CANCELLED, Status.EXPIRED])
def test_a_job_that_was_stopped_is_a_revoked_task(status: Status) -> None:
    with pytest.raises(Terminated, match=status):
        end_task(Ended(status, ""))
    assert issubclass(Terminated, EXPECTED)


def test_a_failed_job_is_a_failed_task_with_its_code() -> None:
    with pytest.raises(JobFailedError, match="deadline_exceeded") as caught:
        end_task(Ended(Status.FAILED, "deadline_exceeded"))
    assert isinstance(caught.value, EXPECTED)


def test_a_job_that_another_worker_continues_ends_without_an_event() -> None:
    with pytest.raises(Ignore):
        end_task(None)
