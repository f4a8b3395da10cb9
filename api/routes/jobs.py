"""`/v1/jobs`: submit, read, list, cancel."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Query, Request, Response

from api.answers import (
    accepted,
    job_answer,
    job_headers,
    json_answer,
    no_result,
    no_such_job,
    preference_headers,
    read_accepted,
)
from api.documented import QUEUE_CODES, SUBMIT_CODES, headers, problems
from api.idempotency import idempotency
from api.job_view import job_response, job_result
from api.problems import Code, invalid
from api.routes.parameters import KeyLinesDep, PreferencesDep
from api.schemas import DEFAULT_PAGE, MAX_PAGE, JobList, JobRequest, JobResponse, JobResult
from api.services import Services, ServicesDep
from api.strict_json import StrictRoute
from api.submission import ANYBODY
from api.waiting import while_connected
from tasks.job import Job, Status
from tasks.job_id import JOB_ID, new_job_id

router = APIRouter(prefix="/v1/jobs", route_class=StrictRoute, tags=["jobs"])

JobIdPath = Annotated[str, Path(description="Id of a job.", examples=["job_01JZ8K6T4V9QABCDEFGHJKMNPQ"])]
WaitQuery = Annotated[
    float | None,
    Query(ge=0, allow_inf_nan=False, description="Long poll: seconds to wait, as far as the server's limit."),
]

_LOCATION = headers(Location="URL of the job.", X_Job_Id="Its id.")
_LATER = headers(Location="URL of the job.", X_Job_Id="Its id.", Retry_After="Seconds until a look makes sense.")


@router.post(
    "",
    status_code=202,
    response_model=JobResponse,
    response_description="The job waits or runs.",
    summary="Submit a job",
    responses={
        200: {
            "model": JobResponse,
            "description": "The job is over: it took no longer than `Prefer: wait=N`.",
            "headers": _LOCATION,
        },
        202: {"headers": _LATER},
        **problems(SUBMIT_CODES),
    },
)
async def submit(
    body: JobRequest, request: Request, services: ServicesDep, preferences: PreferencesDep, key_lines: KeyLinesDep
) -> Response:
    """Queues a generation and answers at once, or with `Prefer: wait=N` when it is over, after N seconds at most."""
    prefix = request.scope.get("root_path", "")
    key = idempotency(key_lines, owner=ANYBODY, route="jobs", body=body)
    submitted = await services.submitter.submit(body, job_id=new_job_id(), key=key)
    job_id = submitted.job_id
    wait_s = preferences.patience_s(default=None, longest=services.settings.max_wait_s)
    job: Job | None = None
    if wait_s is not None:
        wait = services.waiter.wait(job_id, until=lambda job: job.status.terminal, timeout_s=wait_s)
        job = await while_connected(request, wait)
    if job is None:
        job = await read_accepted(services.store, job_id, prefix)
    # Who did not want to wait gets 202 for a new job, however quickly it was done.
    over = job.status.terminal and (wait_s is not None or submitted.replayed)
    answer = {
        **job_headers(job_id, prefix),
        **({"Idempotency-Replayed": "true"} if submitted.replayed else {}),
        **preference_headers(preferences, waited_s=wait_s, answered_async=not over),
    }
    if over:
        return await job_answer(services.store, job, prefix, 200, answer)
    return await accepted(services.store, job, prefix, answer)


@router.get(
    "",
    response_model=JobList,
    summary="List jobs",
    responses=problems((*QUEUE_CODES, Code.INVALID_REQUEST)),
)
async def jobs(
    request: Request,
    services: ServicesDep,
    status: Annotated[Status | None, Query(description="Only jobs in this status.")] = None,
    cursor: Annotated[str | None, Query(description="`next_cursor` of the page before.")] = None,
    limit: Annotated[int, Query(ge=1, le=MAX_PAGE, description="Jobs of a page.")] = DEFAULT_PAGE,
) -> Response:
    """A page of jobs, newest first. The text of a job that still runs is left out here."""
    try:
        page = await services.store.list(status=status, cursor=cursor, limit=limit, owner=ANYBODY)
    except ValueError as error:
        raise invalid(("query", "cursor"), "This is no `next_cursor` of a page.", "cursor", given=cursor) from error
    prefix = request.scope.get("root_path", "")
    data = [job_response(job, prefix=prefix) for job in page.jobs]
    return json_answer(JobList(data=data, next_cursor=page.next_cursor))


@router.get(
    "/{job_id}",
    response_model=JobResponse,
    summary="Read a job",
    responses={
        200: {"headers": headers(ETag="The job's version.")},
        304: {
            "description": "The version is still the one of `If-None-Match`.",
            "headers": headers(ETag="The job's version."),
        },
        **problems((*QUEUE_CODES, Code.NOT_FOUND, Code.INVALID_REQUEST)),
    },
)
async def job(
    job_id: JobIdPath,
    request: Request,
    services: ServicesDep,
    wait: WaitQuery = None,
    after_version: Annotated[
        int | None, Query(ge=0, description="With `wait`: answer as soon as the version is higher than this.")
    ] = None,
) -> Response:
    """The job with its text so far.

    With `wait` the answer comes when the job is over, or with `after_version` at its next change, or when the time is
    over, whichever is first. It is 200 in each case.
    """
    found = await _get(services, job_id)
    if wait is not None and not _enough(found, after_version):
        waiting = services.waiter.wait(
            job_id,
            until=lambda job: _enough(job, after_version),
            timeout_s=min(wait, services.settings.long_poll_max_s),
            tokens=after_version is not None,
        )
        changed = await while_connected(request, waiting)
        found = changed or found
    etag = f'"{found.version}"'
    if etag in _etags(request):
        return Response(status_code=304, headers={"ETag": etag})
    return await job_answer(services.store, found, request.scope.get("root_path", ""), 200, {"ETag": etag})


@router.get(
    "/{job_id}/result",
    response_model=JobResult,
    summary="Read a job's text",
    responses={
        202: {"model": JobResponse, "description": "The job is not over yet.", "headers": _LATER},
        **problems((*QUEUE_CODES, Code.NOT_FOUND, Code.INVALID_REQUEST, Code.CANCELLED, Code.EXPIRED)),
    },
)
async def result(job_id: JobIdPath, request: Request, services: ServicesDep, wait: WaitQuery = None) -> Response:
    """The text alone, once it is there. A job that failed or was cancelled: 409, with the text that it had."""
    prefix = request.scope.get("root_path", "")
    found = await _get(services, job_id)
    if wait is not None and not found.status.terminal:
        waiting = services.waiter.wait(
            job_id, until=lambda job: job.status.terminal, timeout_s=min(wait, services.settings.long_poll_max_s)
        )
        changed = await while_connected(request, waiting)
        found = changed or found
    if not found.status.terminal:
        return await accepted(services.store, found, prefix, job_headers(job_id, prefix))
    if found.status is not Status.SUCCEEDED:
        raise no_result(found, prefix)
    return json_answer(job_result(found), 200, job_headers(job_id, prefix))


@router.post(
    "/{job_id}/cancel",
    response_model=JobResponse,
    summary="Cancel a job",
    responses={
        202: {"model": JobResponse, "description": "The job runs; its worker was asked to stop.", "headers": _LATER},
        **problems((*QUEUE_CODES, Code.NOT_FOUND, Code.INVALID_REQUEST)),
    },
)
async def cancel(job_id: JobIdPath, request: Request, services: ServicesDep) -> Response:
    """Stops a job, which keeps its text so far. One that is over stays as it is; calling this again is harmless."""
    _check_id(job_id)
    found = await services.store.cancel(job_id)
    if found is None:
        raise no_such_job(job_id)
    prefix = request.scope.get("root_path", "")
    if not found.status.terminal:
        return await accepted(services.store, found, prefix, job_headers(job_id, prefix))
    return await job_answer(services.store, found, prefix, 200, job_headers(job_id, prefix))


def _check_id(job_id: str) -> None:
    if not JOB_ID.fullmatch(job_id):
        raise no_such_job(job_id)


async def _get(services: Services, job_id: str) -> Job:
    _check_id(job_id)
    found = await services.store.get(job_id)
    if found is None:
        raise no_such_job(job_id)
    return found


def _enough(job: Job, after_version: int | None) -> bool:
    """Whether a long poll has its answer."""
    return job.status.terminal or (after_version is not None and job.version > after_version)


def _etags(request: Request) -> set[str]:
    """Entity tags of `If-None-Match`, compared weakly as HTTP wants it there."""
    lines = request.headers.getlist("if-none-match")
    return {tag.strip().removeprefix("W/") for line in lines for tag in line.split(",")}
