"""Why a job failed or expired, where the queue itself decides that. The scripts know these as `FAILURE`."""

from __future__ import annotations

from tasks.job import ErrorCode, JobError

WORKER_LOST = JobError(
    ErrorCode.WORKER_LOST,
    "Workers died again and again while they ran this job, without a new token in between.",
    retryable=True,
)
#: Its weights are no worker's any more.
CHECKPOINT_CHANGED = JobError(
    ErrorCode.CHECKPOINT_CHANGED,
    "The checkpoint's weights were replaced after this job was accepted. Submit it again to run it on the new ones.",
    retryable=True,
)
#: `queue_timeout_s`.
START_TIMEOUT = JobError(
    ErrorCode.START_TIMEOUT, "No worker took the job up within its time in the queue.", retryable=True
)
#: `deadline_s`, before the first start.
EXPIRED = JobError(ErrorCode.DEADLINE_EXCEEDED, "The job's time was over before a worker took it up.", retryable=True)
#: `deadline_s` or `run_timeout_s`, after the first start.
DEADLINE_EXCEEDED = JobError(
    ErrorCode.DEADLINE_EXCEEDED,
    "The job's time was over before its text was complete; the part that was decoded is kept.",
    retryable=False,
)
