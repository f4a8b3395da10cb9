"""Finding the job that a path names."""

from __future__ import annotations

from api.jobs.responses import missing, no_such_job
from api.services import Services
from tasks.job import Job
from tasks.job_id import JOB_ID


def check_id(job_id: str) -> None:
    """Raises ApiError for what is no id of ours."""
    if not JOB_ID.fullmatch(job_id):
        raise no_such_job(job_id)


async def get_job(services: Services, job_id: str) -> Job:
    """The job. Raises ApiError where there is none, and RedisError."""
    check_id(job_id)
    found = await services.store.get(job_id)
    if found is None:
        raise await missing(services.store, job_id)
    return found
