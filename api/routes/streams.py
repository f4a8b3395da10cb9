"""`GET /v1/jobs/{id}/stream`: a job as Server-Sent Events."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from api.http.cursor import Cursor, cursor_of
from api.http.openapi import QUEUE_CODES, STREAM_CONTENT, headers, problems
from api.http.parameters import JobIdPath, LastEventIdHeader
from api.http.problems import Code
from api.http.sse import EventStream
from api.jobs.lookup import get_job
from api.jobs.responses import job_headers, vanished
from api.services import Services, ServicesDep
from tasks.job import Job

router = APIRouter(prefix="/v1/jobs", tags=["jobs"])


@router.get(
    "/{job_id}/stream",
    status_code=200,
    summary="Follow a job",
    response_class=Response,
    responses={
        200: {
            "description": "Events `queue`, `status`, `token`, `attempt`, `error`, and at the end `done`.",
            "content": STREAM_CONTENT,
            "headers": headers(Location="URL of the job.", X_Job_Id="Its id."),
        },
        204: {"description": "The last event that you got was `done`: there is nothing more."},
        **problems((*QUEUE_CODES, Code.NOT_FOUND, Code.GONE, Code.INVALID_REQUEST)),
    },
)
async def stream(
    job_id: JobIdPath,
    request: Request,
    services: ServicesDep,
    last_event_id: LastEventIdHeader = None,
    starting_after: Annotated[
        str | None,
        Query(
            description="Where to begin: tokens that you have, or the `id` of the last event. Goes before the header."
        ),
    ] = None,
) -> Response:
    """The job from the beginning or from any place in it, as it happens, to its end. Closing it cancels nothing."""
    cursor = cursor_of(last_event_id, starting_after)
    job = await get_job(services, job_id)
    return await stream_answer(services, job, cursor, request.scope.get("root_path", ""))


async def stream_answer(
    services: Services,
    job: Job,
    cursor: Cursor,
    prefix: str,
    *,
    headers: Mapping[str, str] | None = None,
    on_gone: Callable[[], Awaitable[None]] | None = None,
) -> Response:
    """The stream of a job behind `cursor`; 204 where that is its end. Raises ApiError and RedisError.

    `on_gone` is called where the client goes away before the end.
    """
    news = await services.store.changes(job.id, *cursor)
    if news is None:
        raise await vanished(services.store, job.id)
    answer = {**job_headers(job.id, prefix), **(headers or {})}
    if news.ended is not None and str(cursor) == news.end_id:
        return Response(status_code=204, headers=answer)
    return EventStream(services.follower.follow(job, news, cursor, prefix=prefix), answer, on_gone=on_gone)
