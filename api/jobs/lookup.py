"""Finds the job that a path names."""

from __future__ import annotations

from api.jobs.responses import missing, no_such_job
from tasks.job import Job
from tasks.job_id import JOB_ID
from tasks.store.job_store import JobStore


def check_job_id(job_id: str) -> None:
    """Raises ApiError if `job_id` does not have the form of a job's id."""
    if not JOB_ID.fullmatch(job_id):
        raise no_such_job(job_id)


async def get_job(store: JobStore, job_id: str) -> Job:
    """The job. Raises ApiError if there is none, and RedisError."""
    check_job_id(job_id)
    job = await store.get(job_id)
    if job is None:
        raise await missing(store, job_id)
    return job
