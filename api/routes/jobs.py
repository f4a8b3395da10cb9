"""`/v1/jobs`: submit, read, list, cancel, repeat and delete jobs."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from api.http.disconnect import while_connected
from api.http.openapi import CHANGE_CODES, QUEUE_CODES, SUBMIT_CODES, headers, problems
from api.http.parameters import JobIdPath, KeyLinesDep, SubmitHeadersDep, UrlPrefixDep
from api.http.problems import Code, invalid
from api.http.request_headers import parse_idempotency_key
from api.http.strict_query import StrictQueryRoute
from api.jobs.job_view import job_response, job_result
from api.jobs.lookup import check_job_id, get_job
from api.jobs.responses import (
    code_of,
    is_retryable,
    job_headers,
    json_response,
    missing,
    no_result,
    not_retryable,
    read_accepted,
    replayed_headers,
)
from api.jobs.submission import ANONYMOUS, idempotency
from api.jobs.submit_and_wait import request_idempotency
from api.schemas.generation import JobRequest
from api.schemas.jobs import DEFAULT_PAGE, MAX_PAGE, JobList, JobResponse, JobResult
from api.services import ServicesDep
from tasks.errors import CursorError
from tasks.job import ErrorCode, Job, Status
from tasks.job_id import new_job_id

router = APIRouter(route_class=StrictQueryRoute, prefix="/v1/jobs", tags=["jobs"])

WaitQuery = Annotated[
    float | None,
    Query(ge=0, allow_inf_nan=False, description="Long poll: seconds to wait, limited by the server's maximum."),
]

_ETAG = "Changes when the job, its position or an estimate changes."
_JOB_HEADERS = headers(Location="URL of the job.", X_Job_Id="Id of the job.")
_ACCEPTED_HEADERS = headers(
    Location="URL of the job.",
    X_Job_Id="Id of the job.",
    Retry_After="Estimated seconds until the job is over, 1 to 60.",
)


@router.post(
    "",
    status_code=202,
    response_model=JobResponse,
    response_description="The job is queued or runs.",
    summary="Submit a job",
    responses={
        200: {
            "model": JobResponse,
            "description": "The job is over: it ended within the time of `Prefer: wait=N`.",
            "headers": _JOB_HEADERS,
        },
        202: {"headers": _ACCEPTED_HEADERS},
        **problems((*SUBMIT_CODES, Code.MAX_QUEUE_POSITION)),
    },
)
async def submit(
    body: JobRequest,
    request: Request,
    services: ServicesDep,
    submit_headers: SubmitHeadersDep,
    prefix: UrlPrefixDep,
) -> Response:
    """Queues a generation and answers at once. With `Prefer: wait=N` it waits for the job's end, at most N seconds."""
    key = request_idempotency(await request.json(), body, submit_headers, route="jobs")
    wait_s = submit_headers.preferences.granted_wait_s(default=None, longest=services.settings.max_wait_s)
    call = await services.submit_and_wait.run(
        body, submit_headers, prefix, key=key, wait_s=wait_s, receive=request.receive
    )
    if call.has_answer:
        return await services.responses.job(call.job, prefix, call.headers)
    return await services.responses.accepted(call.job, prefix, call.headers)


@router.get(
    "",
    response_model=JobList,
    summary="List jobs",
    responses=problems((*QUEUE_CODES, Code.INVALID_REQUEST)),
)
async def jobs(
    services: ServicesDep,
    prefix: UrlPrefixDep,
    status: Annotated[Status | None, Query(description="Only jobs with this status.")] = None,
    cursor: Annotated[str | None, Query(description="`next_cursor` of the previous page.")] = None,
    limit: Annotated[int, Query(ge=1, le=MAX_PAGE, description="Jobs per page.")] = DEFAULT_PAGE,
) -> Response:
    """A page of jobs, newest first. It does not include the text of running jobs."""
    try:
        page = await services.store.list(status=status, cursor=cursor, limit=limit, owner=ANONYMOUS)
    except CursorError as error:
        raise invalid(
            ("query", "cursor"), "This is not the `next_cursor` of a page.", "cursor", given=cursor
        ) from error
    # One snapshot for each checkpoint serves the whole page.
    data = [
        job_response(job, prefix=prefix, queue=await services.queue_loads.snapshot(job.checkpoint)) for job in page.jobs
    ]
    return json_response(JobList(data=data, next_cursor=page.next_cursor))


@router.get(
    "/{job_id}",
    response_model=JobResponse,
    summary="Read a job",
    responses={
        200: {"headers": headers(ETag=_ETAG)},
        304: {
            "description": "The job is as in the response whose `ETag` is in `If-None-Match`.",
            "headers": headers(ETag=_ETAG),
        },
        **problems((*QUEUE_CODES, Code.NOT_FOUND, Code.GONE, Code.INVALID_REQUEST)),
    },
)
async def job(
    job_id: JobIdPath,
    request: Request,
    services: ServicesDep,
    prefix: UrlPrefixDep,
    wait: WaitQuery = None,
    after_version: Annotated[
        int | None, Query(ge=0, description="With `wait`: answer as soon as the version is higher than this.")
    ] = None,
) -> Response:
    """The job with its text so far.

    With `wait` the response comes when the job is over, with `after_version` also at its next change, and in any case
    when the time is over. Its status is 200 in each case.
    """
    found = await get_job(services.store, job_id)
    if wait is not None and not _has_answer(found, after_version):
        waiting = services.waiter.wait(
            job_id,
            until=lambda job: _has_answer(job, after_version),
            timeout_s=min(wait, services.settings.long_poll_max_s),
            tokens=after_version is not None,
        )
        changed = await while_connected(request.receive, waiting)
        found = changed or found
    return await services.responses.current(request, found, prefix)


@router.get(
    "/{job_id}/result",
    response_model=JobResult,
    summary="Read a job's text",
    responses={
        202: {"model": JobResponse, "description": "The job is not over yet.", "headers": _ACCEPTED_HEADERS},
        **problems(
            (*QUEUE_CODES, Code.NOT_FOUND, Code.GONE, Code.INVALID_REQUEST, Code.CANCELLED),
            with_status={409: map(code_of, ErrorCode), 410: (Code.START_TIMEOUT, Code.DEADLINE_EXCEEDED)},
        ),
    },
)
async def result(
    job_id: JobIdPath, request: Request, services: ServicesDep, prefix: UrlPrefixDep, wait: WaitQuery = None
) -> Response:
    """Only the text, once the job has succeeded. For a job that failed or was cancelled: 409 with its text so far."""
    found = await get_job(services.store, job_id)
    if wait is not None and not found.status.terminal:
        waiting = services.waiter.wait(
            job_id, until=lambda job: job.status.terminal, timeout_s=min(wait, services.settings.long_poll_max_s)
        )
        changed = await while_connected(request.receive, waiting)
        found = changed or found
    if not found.status.terminal:
        return await services.responses.accepted(found, prefix, job_headers(job_id, prefix))
    if found.status is not Status.SUCCEEDED:
        raise no_result(found, prefix)
    return json_response(job_result(found), 200, job_headers(job_id, prefix))


@router.post(
    "/{job_id}/cancel",
    response_model=JobResponse,
    summary="Cancel a job",
    responses={
        202: {
            "model": JobResponse,
            "description": "The job runs; its worker was asked to stop.",
            "headers": _ACCEPTED_HEADERS,
        },
        **problems((*QUEUE_CODES, *CHANGE_CODES, Code.NOT_FOUND, Code.GONE, Code.INVALID_REQUEST)),
    },
)
async def cancel(job_id: JobIdPath, services: ServicesDep, prefix: UrlPrefixDep) -> Response:
    """Stops a job, which keeps its text so far. A job that is over stays unchanged, so you may call this repeatedly."""
    check_job_id(job_id)
    found = await services.store.cancel(job_id)
    if found is None:
        raise await missing(services.store, job_id)
    if not found.status.terminal:
        return await services.responses.accepted(found, prefix, job_headers(job_id, prefix))
    return await services.responses.job(found, prefix, job_headers(job_id, prefix))


@router.post(
    "/{job_id}/retry",
    status_code=202,
    response_model=JobResponse,
    response_description="The new job is queued or runs.",
    summary="Repeat a job",
    responses={
        202: {"headers": _ACCEPTED_HEADERS},
        **problems((*SUBMIT_CODES, Code.NOT_FOUND, Code.NOT_RETRYABLE)),
    },
)
async def retry(job_id: JobIdPath, services: ServicesDep, prefix: UrlPrefixDep, key_lines: KeyLinesDep) -> Response:
    """Queues the same request, with the same seed, as a new job whose `retry_of` is the old one.

    Only for a job that ended without success. The old job stays unchanged.
    """
    check_job_id(job_id)
    key = idempotency(parse_idempotency_key(key_lines), owner=ANONYMOUS, route="retry", request={"job_id": job_id})
    # The old job may have expired since the first request with the key.
    submitted = None if key is None else await services.submitter.find(key)
    if submitted is None:
        found = await get_job(services.store, job_id)
        if not is_retryable(found):
            raise not_retryable(found)
        submitted = await services.submitter.repeat(found, job_id=new_job_id(), key=key)
    job = await read_accepted(services.store, submitted, prefix)
    headers = {**job_headers(job.id, prefix), **replayed_headers(submitted.replayed)}
    return await services.responses.accepted(job, prefix, headers)


@router.delete(
    "/{job_id}",
    status_code=204,
    response_class=Response,
    response_description="The job is deleted.",
    summary="Delete a job",
    responses=problems((*QUEUE_CODES, *CHANGE_CODES, Code.NOT_FOUND, Code.GONE, Code.INVALID_REQUEST)),
)
async def delete(job_id: JobIdPath, services: ServicesDep) -> Response:
    """Deletes a job with its prompt and its text, and stops it if it is queued or runs. Its URLs then answer 410.

    You may call this repeatedly.
    """
    check_job_id(job_id)
    if not await services.store.delete(job_id):
        raise await missing(services.store, job_id)
    return Response(status_code=204)


def _has_answer(job: Job, after_version: int | None) -> bool:
    """Whether a long poll ends with this state of the job."""
    return job.status.terminal or (after_version is not None and job.version > after_version)
