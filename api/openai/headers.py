"""Headers of the answers of OpenAI's API, beside those that every job's answer has."""

from __future__ import annotations

from collections.abc import Sequence

from api.jobs.queue_load import QueueSnapshot
from tasks.job import Job, Status

#: Names, with `_` for `-`, and descriptions of the headers of an answer with status 200, for the OpenAPI document.
ANSWER_HEADERS = {
    "X_Job_Id": "Id of the call's first job. The ids of the others follow it.",
    "Location": "URL of that job.",
    "X_Celeriac_Ignored": "Names of fields in the request that have no effect.",
    "X_Job_Position": "In a stream: jobs ahead of the call when it was accepted.",
    "X_Job_Start_S": "In a stream: estimated seconds until the first job starts.",
    "X_Job_Finish_S": "In a stream: estimated seconds until it is over.",
    "OpenAI_Processing_Ms": "Not in a stream: how long the call's jobs took, with their time in the queue.",
}


def queue_headers(job: Job, queue: QueueSnapshot) -> dict[str, str]:
    """Position and estimate of a job that is not over: jobs ahead of it, and seconds until its start and its end."""
    estimate = queue.estimate(job)
    queued = job.status is Status.QUEUED
    values = {
        "X-Job-Position": job.position if queued else None,
        "X-Job-Start-S": estimate.start_s if queued else None,
        "X-Job-Finish-S": None if estimate.finish is None else estimate.finish.p50,
    }
    return {
        name: f"{value:.3g}" if isinstance(value, float) else str(value)
        for name, value in values.items()
        if value is not None
    }


def processing_headers(jobs: Sequence[Job]) -> dict[str, str]:
    """How long the call's jobs took together, from the submission to the last end, in milliseconds."""
    ends = [job.finished_at for job in jobs if job.finished_at is not None]
    return {"OpenAI-Processing-Ms": str(max(ends) - jobs[0].created_at)} if ends else {}
