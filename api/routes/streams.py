"""`GET /v1/jobs/{id}/stream`: the events of a job as Server-Sent Events."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Response

from api.http.openapi import QUEUE_CODES, headers, problems, stream_content
from api.http.parameters import JobIdPath, LastEventIdHeader, UrlPrefixDep
from api.http.problems import Code
from api.http.sse import parse_cursor
from api.http.strict_query import StrictQueryRoute
from api.jobs.lookup import get_job
from api.schemas.events import EVENT_DATA
from api.services import ServicesDep

router = APIRouter(route_class=StrictQueryRoute, prefix="/v1/jobs", tags=["jobs"])


@router.get(
    "/{job_id}/stream",
    status_code=200,
    summary="Stream a job",
    response_class=Response,
    responses={
        200: {
            "description": "Events `queue`, `status`, `token`, `attempt`, `problem`, and at the end `done`.",
            "content": stream_content(EVENT_DATA),
            "headers": headers(Location="URL of the job.", X_Job_Id="Id of the job."),
        },
        204: {"description": "The last event that you received was `done`: there is nothing more."},
        **problems((*QUEUE_CODES, Code.NOT_FOUND, Code.GONE, Code.INVALID_REQUEST)),
    },
)
async def stream(
    job_id: JobIdPath,
    services: ServicesDep,
    prefix: UrlPrefixDep,
    last_event_id: LastEventIdHeader = None,
    starting_after: Annotated[
        str | None,
        Query(
            description="Where to start: the number of tokens that you have, or the `id` of the last event. Overrides "
            "the header."
        ),
    ] = None,
) -> Response:
    """Streams a job's events, from the beginning or from any position, to the end. Closing it cancels nothing."""
    cursor = parse_cursor(last_event_id, starting_after)
    job = await get_job(services.store, job_id)
    return await services.job_streams.response(job, cursor, prefix)
