"""`/v1/jobs`: submit, read, list, cancel, repeat, delete."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from api.http.cancel_after import sooner
from api.http.idempotency import idempotency
from api.http.openapi import QUEUE_CODES, SUBMIT_CODES, headers, problems
from api.http.parameters import CancelAfterDep, JobIdPath, KeyLinesDep, PreferencesDep
from api.http.problems import Code, invalid
from api.http.strict_json import StrictRoute
from api.jobs.job_view import job_response, job_result
from api.jobs.lookup import check_id, get_job
from api.jobs.responses import (
    job_headers,
    json_answer,
    missing,
    no_result,
    not_retryable,
    preference_headers,
    read_accepted,
)
from api.jobs.submission import ANYBODY
from api.jobs.waiter import while_connected
from api.schemas.generation import JobRequest
from api.schemas.jobs import DEFAULT_PAGE, MAX_PAGE, JobList, JobResponse, JobResult
from api.services import ServicesDep
from tasks.job import Job, Status
from tasks.job_id import new_job_id
from tasks.store.job_store import Submitted

router = APIRouter(prefix="/v1/jobs", route_class=StrictRoute, tags=["jobs"])

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
        **problems((*SUBMIT_CODES, Code.MAX_QUEUE_POSITION)),
    },
)
async def submit(
    body: JobRequest,
    request: Request,
    services: ServicesDep,
    preferences: PreferencesDep,
    key_lines: KeyLinesDep,
    cancel_after: CancelAfterDep,
) -> Response:
    """Queues a generation and answers at once, or with `Prefer: wait=N` when it is over, after N seconds at most."""
    prefix = request.scope.get("root_path", "")
    asked = {**body.model_dump(mode="json"), "deadline_s": sooner(cancel_after, body.deadline_s)}
    key = idempotency(key_lines, owner=ANYBODY, route="jobs", request=asked)
    job_id = new_job_id()
    wait_s = preferences.patience_s(default=None, longest=services.settings.max_wait_s)
    job: Job | None = None
    with services.watch.watch_end(job_id) as ending:
        submitted = await services.submitter.submit(
            body,
            job_id=job_id,
            key=key,
            cancel_after_s=cancel_after,
            reply_to=None if wait_s is None else services.bells.reply_channel,
        )
        if wait_s is not None:
            wait = services.waiter.wait_end(submitted, ending, timeout_s=wait_s)
            job = await while_connected(request.receive, wait)
    job_id = submitted.job_id
    if job is None:
        job = await read_accepted(services.store, job_id, prefix)
    # Who did not want to wait gets 202 for a new job, however quickly it was done.
    over = job.status.terminal and (wait_s is not None or submitted.replayed)
    answer = {
        **_submitted_headers(submitted, prefix),
        **preference_headers(preferences, waited_s=wait_s, answered_async=not over),
    }
    if over:
        return await services.answers.job(job, prefix, 200, answer)
    return await services.answers.accepted(job, prefix, answer)


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
    # One reading for each checkpoint; for the others of the page it is fresh enough.
    data = [
        job_response(job, prefix=prefix, reading=await services.estimates.reading(job.checkpoint)) for job in page.jobs
    ]
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
        **problems((*QUEUE_CODES, Code.NOT_FOUND, Code.GONE, Code.INVALID_REQUEST)),
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
    found = await get_job(services, job_id)
    if wait is not None and not _enough(found, after_version):
        waiting = services.waiter.wait(
            job_id,
            until=lambda job: _enough(job, after_version),
            timeout_s=min(wait, services.settings.long_poll_max_s),
            tokens=after_version is not None,
        )
        changed = await while_connected(request.receive, waiting)
        found = changed or found
    etag = f'"{found.version}"'
    if etag in _etags(request):
        return Response(status_code=304, headers={"ETag": etag})
    return await services.answers.job(found, request.scope.get("root_path", ""), 200, {"ETag": etag})


@router.get(
    "/{job_id}/result",
    response_model=JobResult,
    summary="Read a job's text",
    responses={
        202: {"model": JobResponse, "description": "The job is not over yet.", "headers": _LATER},
        **problems((*QUEUE_CODES, Code.NOT_FOUND, Code.GONE, Code.INVALID_REQUEST, Code.CANCELLED, Code.EXPIRED)),
    },
)
async def result(job_id: JobIdPath, request: Request, services: ServicesDep, wait: WaitQuery = None) -> Response:
    """The text alone, once it is there. A job that failed or was cancelled: 409, with the text that it had."""
    prefix = request.scope.get("root_path", "")
    found = await get_job(services, job_id)
    if wait is not None and not found.status.terminal:
        waiting = services.waiter.wait(
            job_id, until=lambda job: job.status.terminal, timeout_s=min(wait, services.settings.long_poll_max_s)
        )
        changed = await while_connected(request.receive, waiting)
        found = changed or found
    if not found.status.terminal:
        return await services.answers.accepted(found, prefix, job_headers(job_id, prefix))
    if found.status is not Status.SUCCEEDED:
        raise no_result(found, prefix)
    return json_answer(job_result(found), 200, job_headers(job_id, prefix))


@router.post(
    "/{job_id}/cancel",
    response_model=JobResponse,
    summary="Cancel a job",
    responses={
        202: {"model": JobResponse, "description": "The job runs; its worker was asked to stop.", "headers": _LATER},
        **problems((*QUEUE_CODES, Code.NOT_FOUND, Code.GONE, Code.INVALID_REQUEST)),
    },
)
async def cancel(job_id: JobIdPath, request: Request, services: ServicesDep) -> Response:
    """Stops a job, which keeps its text so far. One that is over stays as it is; calling this again is harmless."""
    check_id(job_id)
    found = await services.store.cancel(job_id)
    if found is None:
        raise await missing(services.store, job_id)
    prefix = request.scope.get("root_path", "")
    if not found.status.terminal:
        return await services.answers.accepted(found, prefix, job_headers(job_id, prefix))
    return await services.answers.job(found, prefix, 200, job_headers(job_id, prefix))


@router.post(
    "/{job_id}/retry",
    status_code=202,
    response_model=JobResponse,
    response_description="The new job waits or runs.",
    summary="Repeat a job",
    responses={
        202: {"headers": _LATER},
        **problems((*SUBMIT_CODES, Code.NOT_FOUND, Code.GONE, Code.NOT_RETRYABLE)),
    },
)
async def retry(job_id: JobIdPath, request: Request, services: ServicesDep, key_lines: KeyLinesDep) -> Response:
    """Queues the same request, with the same seed, as a new job whose `retry_of` is this one. Only for a job that is
    over without success; it stays as it is.
    """
    prefix = request.scope.get("root_path", "")
    found = await get_job(services, job_id)
    if not found.status.terminal or found.status is Status.SUCCEEDED:
        raise not_retryable(found)
    key = idempotency(key_lines, owner=ANYBODY, route="retry", request={"job_id": job_id})
    submitted = await services.submitter.repeat(found, job_id=new_job_id(), key=key)
    job = await read_accepted(services.store, submitted.job_id, prefix)
    return await services.answers.accepted(job, prefix, _submitted_headers(submitted, prefix))


@router.delete(
    "/{job_id}",
    status_code=204,
    response_class=Response,
    response_description="Nothing of it is kept any more.",
    summary="Delete a job",
    responses=problems((*QUEUE_CODES, Code.NOT_FOUND)),
)
async def delete(job_id: JobIdPath, services: ServicesDep) -> Response:
    """Deletes a job with its prompt and its text; one that waits or runs is stopped. From then on its URLs are 410.

    Calling this again is harmless.
    """
    check_id(job_id)
    if not await services.store.delete(job_id):
        raise await missing(services.store, job_id)
    return Response(status_code=204)


def _submitted_headers(submitted: Submitted, prefix: str) -> dict[str, str]:
    replayed = {"Idempotency-Replayed": "true"} if submitted.replayed else {}
    return {**job_headers(submitted.job_id, prefix), **replayed}


def _enough(job: Job, after_version: int | None) -> bool:
    """Whether a long poll has its answer."""
    return job.status.terminal or (after_version is not None and job.version > after_version)


def _etags(request: Request) -> set[str]:
    """Entity tags of `If-None-Match`, compared weakly as HTTP wants it there."""
    lines = request.headers.getlist("if-none-match")
    return {tag.strip().removeprefix("W/") for line in lines for tag in line.split(",")}
