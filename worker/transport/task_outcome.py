"""How a task body ends, so that Celery's events, and with them Flower, show the state of the job."""

from __future__ import annotations

from celery.exceptions import Ignore, Terminated

from tasks.job import Status
from tasks.store.worker_store import Ended


class JobFailedError(Exception):
    """The job has failed. The text is the code of its error: Flower shows it, so it has nothing of the prompt."""


#: The exceptions that Celery does not log: they are no errors of the worker.
EXPECTED = (JobFailedError, Terminated)


def end_task(ended: Ended | None) -> None:
    """Return if the job has succeeded, and raise what Celery has for every other end.

    A failed job is a failed task, and a cancelled or expired one is revoked. A job that has not ended (None) continues
    on another worker, whose events follow: this task ends without an event.
    """
    if ended is None:
        raise Ignore("the job has not ended")
    if ended.status is Status.FAILED:
        raise JobFailedError(ended.error_code)
    if ended.status is not Status.SUCCEEDED:
        raise Terminated(ended.status.value)
