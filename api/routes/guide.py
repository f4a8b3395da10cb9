"""The original guide's endpoints: `POST /generate`, `GET /info`, `GET /`."""

from __future__ import annotations

from functools import partial

import structlog
from fastapi import APIRouter, Request, Response
from redis.exceptions import RedisError

from api.http.cursor import cursor_of
from api.http.idempotency import idempotency
from api.http.openapi import QUEUE_CODES, STREAM_CONTENT, SUBMIT_CODES, headers, legacy_errors
from api.http.parameters import CancelAfterDep, KeyLinesDep, LastEventIdHeader, PreferencesDep
from api.http.problems import Code
from api.http.sse import wants_events
from api.http.strict_json import StrictRoute
from api.jobs.responses import generated, job_headers, preference_headers, read_accepted, unsuccessful, wait_is_over
from api.jobs.submission import ANYBODY
from api.jobs.waiter import ClientGoneError, while_connected
from api.routes.health import summary
from api.routes.streams import stream_answer
from api.schemas.generation import GenerateRequest, GenerateResponse
from api.schemas.health import InfoResponse, RootResponse
from api.schemas.jobs import JobResponse
from api.services import Services, ServicesDep, UncheckedServicesDep
from tasks.job import Job, Status
from tasks.job_id import new_job_id

log = structlog.get_logger(__name__)

#: The guide's name and version of the service.
TITLE = "Inference API"
VERSION = "1.0.0"

router = APIRouter(route_class=StrictRoute, tags=["guide"])

_JOB_CODES = (
    Code.WAIT_TIMEOUT,
    Code.START_TIMEOUT,
    Code.DEADLINE_EXCEEDED,
    Code.GONE,
    Code.JOB_LOST,
    Code.CANCELLED,
    Code.CHECKPOINT_CHANGED,
    Code.WORKER_LOST,
    Code.OUT_OF_MEMORY,
)


@router.post(
    "/generate",
    response_model=GenerateResponse,
    summary="Generate text from a prompt",
    responses={
        200: {
            "description": "The prompt with its continuation. With `Accept: text/event-stream`: the events of the job.",
            "content": STREAM_CONTENT,
            "headers": headers(
                X_Job_Id="The job behind this answer.",
                Location="Its URL.",
                Server_Timing="Milliseconds of queue, ttft and decode.",
                X_Job_Warnings="JSON list of texts, such as characters that were left out.",
            ),
        },
        202: {
            "model": JobResponse,
            "description": "With `Prefer`: not finished in the time that you wished to wait. The job goes on.",
            "headers": headers(Location="URL of the job.", Retry_After="Seconds until a look makes sense."),
        },
        **legacy_errors((*SUBMIT_CODES, *_JOB_CODES)),
    },
)
async def generate(
    body: GenerateRequest,
    request: Request,
    services: ServicesDep,
    preferences: PreferencesDep,
    key_lines: KeyLinesDep,
    cancel_after: CancelAfterDep,
    last_event_id: LastEventIdHeader = None,
) -> Response:
    """Continues a prompt and waits for the text, which is given back with the prompt in front.

    The request goes through the same queue as every job. A client that closes the connection cancels it, unless the
    request has an `Idempotency-Key`, with which the answer can be fetched later. With `Accept: text/event-stream` the
    answer is the job's stream of events, as `GET /v1/jobs/{id}/stream` has it.
    """
    prefix = request.scope.get("root_path", "")
    asked = {**body.model_dump(mode="json"), "deadline_s": cancel_after}
    key = idempotency(key_lines, owner=ANYBODY, route="generate", request=asked)
    streams = wants_events(request)
    cursor = cursor_of(last_event_id if streams else None, None)
    job_id = new_job_id()
    settings = services.settings
    wait_s = None if streams else preferences.patience_s(default=settings.sync_wait_s, longest=settings.max_wait_s)
    job: Job | None = None
    with services.watch.watch_end(job_id) as ending:
        submitted = await services.submitter.submit(
            body,
            job_id=job_id,
            key=key,
            cancel_after_s=cancel_after,
            reply_to=None if wait_s is None else services.bells.reply_channel,
        )
        job_id = submitted.job_id
        # Without a key nobody knows the job's id, so that nobody will ever ask for its text.
        abandon = partial(_cancel, services, job_id) if key is None else None
        if wait_s is not None:
            try:
                wait = services.waiter.wait_end(submitted, ending, timeout_s=wait_s)
                job = await while_connected(request.receive, wait)
            except ClientGoneError:
                if abandon is not None:
                    await abandon()
                raise
    replayed = {"Idempotency-Replayed": "true"} if submitted.replayed else {}
    if streams:
        accepted = await read_accepted(services.store, job_id, prefix)
        return await stream_answer(services, accepted, cursor, prefix, headers=replayed, on_gone=abandon)
    if job is None:
        job = await read_accepted(services.store, job_id, prefix)
    # Who did not want to wait gets 202 for a new job, however quickly it was done.
    over = job.status.terminal and (wait_s is not None or submitted.replayed)
    if wait_s is not None and not over and not preferences.given and settings.generate_timeout_status != 202:
        stopping = services.stopping.begun
        why = "This server is shutting down." if stopping else f"No answer within {wait_s:g} s."
        raise wait_is_over(job_id, prefix, why)
    answer = {
        **job_headers(job_id, prefix),
        **replayed,
        **preference_headers(preferences, waited_s=wait_s, answered_async=not over),
    }
    if not over:
        return await services.answers.accepted(job, prefix, answer)
    if job.status is not Status.SUCCEEDED:
        raise unsuccessful(job, prefix)
    return generated(job, answer)


@router.get(
    "/info",
    response_model=InfoResponse,
    summary="Model information",
    responses=legacy_errors((*QUEUE_CODES, Code.MODEL_NOT_FOUND, Code.MODEL_REQUIRED, Code.MODEL_NOT_LOADED)),
)
async def info(services: ServicesDep, model: str | None = None) -> InfoResponse:
    """What the checkpoint is; also while no worker serves it. `model` chooses among several."""
    card = await services.checkpoints.describe(model)
    return InfoResponse(
        checkpoint=card.name,
        step=card.step,
        # A loss in bits per byte is another quantity; `celeriac inspect` tells it.
        val_loss=card.loss if card.loss_name == "val_loss" else None,
        model_layers=card.n_layer,
        model_dim=card.n_embd,
        vocab_size=card.vocab_size,
    )


@router.get("/", response_model=RootResponse, summary="Overview")
async def root(services: UncheckedServicesDep) -> RootResponse:
    """The service and its endpoints."""
    health = await summary(services)
    return RootResponse(
        service=TITLE,
        version=VERSION,
        checkpoint=health.checkpoint,
        status="running" if health.model_loaded else "loading",
        endpoints={
            "POST /generate": "Generate text from prompt",
            "GET /health": "Health check",
            "GET /info": "Model information",
            "GET /docs": "Interactive API documentation",
        },
    )


async def _cancel(services: Services, job_id: str) -> None:
    try:
        await services.store.cancel(job_id)
    except RedisError as error:
        log.warning("cancel_failed", job_id=job_id, error=type(error).__name__)
