"""Errors of jobs that the queue itself ends. The scripts use them as `FAILURE`."""

from __future__ import annotations

from tasks.job import ErrorCode, JobError

WORKER_LOST = JobError(
    ErrorCode.WORKER_LOST,
    "Workers were lost too many times while they ran this job.",
    retryable=True,
)
#: The engines that ran the job ended because there was no memory left.
OUT_OF_MEMORY = JobError(
    ErrorCode.OUT_OF_MEMORY,
    "Engines that ran this job were ended too many times because no memory was left. Ask for fewer tokens, or give the "
    "worker more memory.",
    retryable=True,
)
#: The record or the token log was changed by something else than this program.
RECORD_DAMAGED = JobError(
    ErrorCode.RECORD_DAMAGED,
    "The job's record in Redis was damaged, so the job could not be completed. Send the request again as a new job.",
    retryable=True,
)
#: The job was accepted for weights that no worker still has.
CHECKPOINT_CHANGED = JobError(
    ErrorCode.CHECKPOINT_CHANGED,
    "The checkpoint's weights were replaced after this job was accepted. Submit it again to use the new weights.",
    retryable=True,
)
#: The files of the checkpoint are gone, and no worker has it.
CHECKPOINT_REMOVED = JobError(
    ErrorCode.CHECKPOINT_REMOVED,
    "The checkpoint's files were removed before this job was started, and no worker has the checkpoint.",
    retryable=False,
)
#: No worker could load the checkpoint.
CHECKPOINT_UNLOADABLE = JobError(
    ErrorCode.CHECKPOINT_UNLOADABLE,
    "The checkpoint could not be loaded. The log of its worker says why.",
    retryable=True,
)
#: `queue_timeout_s` has passed.
START_TIMEOUT = JobError(ErrorCode.START_TIMEOUT, "No worker started the job within its queue timeout.", retryable=True)
#: `deadline_s` has passed before the first start.
EXPIRED = JobError(ErrorCode.DEADLINE_EXCEEDED, "The job's deadline passed before a worker started it.", retryable=True)
#: `deadline_s` or `run_timeout_s` has passed after the first start.
DEADLINE_EXCEEDED = JobError(
    ErrorCode.DEADLINE_EXCEEDED,
    "The job exceeded its time limit before its text was complete. The text generated so far is kept.",
    retryable=False,
)
