"""The endpoints of the original guide: `POST /generate`, `GET /health`, `GET /info` and `GET /`."""

from __future__ import annotations

from functools import partial

from fastapi import APIRouter, Request, Response

from api.http.openapi import CALL_CODES, QUEUE_CODES, SUBMIT_CODES, headers, legacy_errors, stream_content
from api.http.parameters import LastEventIdHeader, SubmitHeadersDep, UrlPrefixDep
from api.http.problems import Code
from api.http.request_headers import prefers_events
from api.http.sse import Cursor, parse_cursor
from api.http.strict_json import StrictRoute
from api.jobs.responses import generated, replayed_headers, unsuccessful, wait_is_over
from api.jobs.submit_and_wait import request_idempotency
from api.schemas.events import EVENT_DATA
from api.schemas.generation import GenerateRequest, GenerateResponse
from api.schemas.health import HealthResponse, InfoResponse, RootResponse
from api.schemas.jobs import JobResponse
from api.services import ServicesDep, UncheckedServicesDep
from tasks.job import Status

#: Name and version of the service in the original guide.
TITLE = "Inference API"
VERSION = "1.0.0"

router = APIRouter(route_class=StrictRoute)


@router.post(
    "/generate",
    tags=["guide"],
    response_model=GenerateResponse,
    summary="Generate text from a prompt",
    responses={
        200: {
            "description": "The prompt with its continuation. With `Accept: text/event-stream`: the events of the job.",
            "content": stream_content(EVENT_DATA),
            "headers": headers(
                X_Job_Id="Id of the job.",
                Location="URL of the job.",
                Server_Timing="Duration of queue, ttft and decode in milliseconds.",
                X_Job_Warnings="JSON list of warnings, for example about characters that were left out.",
            ),
        },
        202: {
            "model": JobResponse,
            "description": "With `Prefer`: the job was not over within the time that you wanted to wait. It continues.",
            "headers": headers(
                Location="URL of the job.", Retry_After="Estimated seconds until the job is over, 1 to 60."
            ),
        },
        204: {"description": "A repeated stream: the last event that you received was `done`."},
        **legacy_errors((*SUBMIT_CODES, *CALL_CODES)),
    },
)
async def generate(
    body: GenerateRequest,
    request: Request,
    services: ServicesDep,
    submit_headers: SubmitHeadersDep,
    prefix: UrlPrefixDep,
    last_event_id: LastEventIdHeader = None,
) -> Response:
    """Continues a prompt, waits for the text, and returns it after the prompt.

    The request is queued like every other job. If the client closes the connection, the job is cancelled, unless the
    request has an `Idempotency-Key`, with which the client can get the answer later. With `Accept: text/event-stream`
    the response is the stream of the job's events, as in `GET /v1/jobs/{id}/stream`.
    """
    key = request_idempotency(await request.json(), body, submit_headers, route="generate")
    streams = prefers_events(request.headers.getlist("accept"))
    cursor = parse_cursor(last_event_id) if streams else Cursor()
    settings, preferences = services.settings, submit_headers.preferences
    wait_s = preferences.granted_wait_s(default=settings.sync_wait_s, longest=settings.max_wait_s)
    call = await services.submit_and_wait.run(
        body,
        submit_headers,
        prefix,
        key=key,
        wait_s=None if streams else wait_s,
        receive=request.receive,
        # Without a key the client has no way to get the text later.
        cancel_if_abandoned=key is None,
    )
    job = call.job
    if streams:
        cancel = partial(services.submit_and_wait.cancel_abandoned, job.id) if key is None else None
        replayed = replayed_headers(call.replayed)
        return await services.job_streams.response(job, cursor, prefix, headers=replayed, on_disconnect=cancel)
    if call.has_answer and job.status is Status.SUCCEEDED:
        return generated(job, call.headers)
    if call.has_answer:
        raise unsuccessful(job, prefix)
    if wait_s is not None and not preferences.given and settings.generate_timeout_status != 202:
        why = "This server is shutting down." if services.shutdown.begun else f"No answer within {wait_s:g} s."
        raise wait_is_over(job.id, prefix, why)
    return await services.responses.accepted(job, prefix, call.headers)


@router.get(
    "/health",
    tags=["health", "guide"],
    response_model=HealthResponse,
    summary="Health check",
    responses=legacy_errors(),
)
async def health(services: UncheckedServicesDep) -> HealthResponse:
    """Whether a worker has a model loaded. Always 200; `/health/ready` shows the state as a status code."""
    return await services.health.summary()


@router.get(
    "/info",
    tags=["guide"],
    response_model=InfoResponse,
    summary="Model information",
    responses=legacy_errors(
        (*QUEUE_CODES, Code.INVALID_REQUEST, Code.MODEL_NOT_FOUND, Code.MODEL_REQUIRED, Code.MODEL_NOT_LOADED)
    ),
)
async def info(services: ServicesDep, model: str | None = None) -> InfoResponse:
    """Describes a checkpoint, also while no worker serves it. `model` chooses one if there are several."""
    card = await services.catalog.describe(model)
    return InfoResponse(
        checkpoint=card.name,
        step=card.step,
        # A loss in bits per byte is another quantity; `celeriac inspect` shows it.
        val_loss=card.loss if card.loss_name == "val_loss" else None,
        model_layers=card.n_layer,
        model_dim=card.n_embd,
        vocab_size=card.vocab_size,
    )


@router.get("/", tags=["guide"], response_model=RootResponse, summary="Overview", responses=legacy_errors())
async def root(services: UncheckedServicesDep) -> RootResponse:
    """The service and its endpoints."""
    summary = await services.health.summary()
    return RootResponse(
        service=TITLE,
        version=VERSION,
        checkpoint=summary.checkpoint,
        status="running" if summary.model_loaded else "loading",
        endpoints={
            "POST /generate": "Generate text from prompt",
            "GET /health": "Health check",
            "GET /info": "Model information",
            "GET /docs": "Interactive API documentation",
        },
    )
