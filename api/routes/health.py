"""Is it there, and would it serve: the guide's `/health`, and the two that probes and balancers want."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter
from redis.exceptions import RedisError

from api.http.openapi import QUEUE_CODES, problems
from api.http.problems import RETRY_WORKER_S, ApiError, Code
from api.jobs.catalog import Picture
from api.schemas.health import HealthResponse, Liveness, Readiness
from api.services import Services, UncheckedServicesDep
from tasks.errors import SchemaError

router = APIRouter(tags=["health"])

#: How long a health check waits for Redis, in seconds.
HEALTH_PATIENCE_S = 1.0
#: Checkpoint's name where none is known: the guide's schema has a text there.
UNKNOWN = "unknown"


@router.get("/health", response_model=HealthResponse, summary="Health check", tags=["guide"])
async def health(services: UncheckedServicesDep) -> HealthResponse:
    """Whether a worker has a model loaded. Always 200; a probe that wants a status code asks `/health/ready`."""
    return await summary(services)


@router.get("/health/live", response_model=Liveness, summary="The process runs")
async def live() -> Liveness:
    """Always 200, whatever Redis and the workers do."""
    return Liveness()


@router.get(
    "/health/ready",
    response_model=Readiness,
    summary="Requests are served",
    responses=problems((*QUEUE_CODES, Code.MODEL_NOT_LOADED, Code.NO_WORKERS)),
)
async def ready(services: UncheckedServicesDep) -> Readiness:
    """200 while a worker takes jobs; else 503 with `state` STARTING, NO_WORKERS, REDIS_DOWN or SCHEMA_MISMATCH."""
    try:
        picture = await _picture(services)
    except (RedisError, TimeoutError) as error:
        raise _not_ready(Code.REDIS_UNAVAILABLE, "REDIS_DOWN", "Redis cannot be reached.") from error
    except SchemaError as error:
        raise _not_ready(Code.SCHEMA_MISMATCH, "SCHEMA_MISMATCH", str(error)) from error
    if not picture.cards:
        raise _not_ready(Code.MODEL_NOT_LOADED, "STARTING", "No worker has loaded a checkpoint yet.")
    serving = picture.serving()
    if not serving:
        raise _not_ready(Code.NO_WORKERS, "NO_WORKERS", "No worker is alive.")
    slots = sum(worker.slots for worker in serving)
    running = sum(worker.running for worker in serving)
    return Readiness(state="BUSY" if running >= slots else "READY", workers=len(serving), slots=slots, running=running)


async def summary(services: Services) -> HealthResponse:
    """The guide's health, of the checkpoint that a request without `model` would get."""
    try:
        picture = await _picture(services)
    except (RedisError, TimeoutError, SchemaError):
        # Without Redis no request can be served, whatever the workers have loaded.
        return HealthResponse(status="error", model_loaded=False, checkpoint=_name(services, services.checkpoints.last))
    loaded = bool(picture.served)
    return HealthResponse(status="ok" if loaded else "error", model_loaded=loaded, checkpoint=_name(services, picture))


def _name(services: Services, picture: Picture) -> str:
    """One name, or several where a request has to choose."""
    name = services.checkpoints.default_name(picture)
    return name or ", ".join(picture.served or sorted(picture.cards)) or UNKNOWN


async def _picture(services: Services) -> Picture:
    async with asyncio.timeout(HEALTH_PATIENCE_S):
        await services.check_schema()
        return await services.checkpoints.picture()


def _not_ready(code: Code, state: str, detail: str) -> ApiError:
    return ApiError(code, detail, retry_after_s=RETRY_WORKER_S, extra={"state": state})
