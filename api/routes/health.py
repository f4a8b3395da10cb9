"""Health checks for probes and load balancers: `GET /health/live` and `GET /health/ready`."""

from __future__ import annotations

from fastapi import APIRouter
from redis.exceptions import RedisError

from api.http.openapi import QUEUE_CODES, problems
from api.http.problems import RETRY_WORKER_S, ApiError, Code
from api.jobs.catalog import CatalogSnapshot
from api.schemas.health import Liveness, Readiness
from api.services import UncheckedServicesDep
from tasks.errors import RedisUnusableError, SchemaError

router = APIRouter(tags=["health"])


@router.get("/health/live", response_model=Liveness, summary="The process runs", responses=problems())
async def live() -> Liveness:
    """Always 200, even while Redis or the workers are away."""
    return Liveness()


@router.get(
    "/health/ready",
    response_model=Readiness,
    summary="Requests are served",
    responses=problems((*QUEUE_CODES, Code.MODEL_NOT_LOADED, Code.NO_WORKERS)),
)
async def ready(services: UncheckedServicesDep) -> Readiness:
    """200 while a worker takes jobs, or can load a checkpoint for them; else 503 with `state`.

    `state` is STARTING, STALLED, NO_WORKERS, REDIS_DOWN, REDIS_UNUSABLE or SCHEMA_MISMATCH.
    """
    try:
        snapshot = await services.health.snapshot()
    except RedisUnusableError as error:
        raise _not_ready(Code.REDIS_UNAVAILABLE, "REDIS_UNUSABLE", str(error)) from error
    except (RedisError, TimeoutError) as error:
        raise _not_ready(Code.REDIS_UNAVAILABLE, "REDIS_DOWN", "Redis cannot be reached.") from error
    except SchemaError as error:
        raise _not_ready(Code.SCHEMA_MISMATCH, "SCHEMA_MISMATCH", str(error)) from error
    if not snapshot.cards:
        raise _not_ready(Code.MODEL_NOT_LOADED, "STARTING", "No worker has loaded a checkpoint yet.")
    serving = snapshot.serving()
    if not serving and not snapshot.offered:
        raise _none_takes_jobs(snapshot)
    workers = sum(counts.serving for counts in serving)
    slots = sum(counts.slots for counts in serving)
    running = sum(counts.running for counts in serving)
    return Readiness(
        state="BUSY" if slots and running >= slots else "READY", workers=workers, slots=slots, running=running
    )


def _none_takes_jobs(snapshot: CatalogSnapshot) -> ApiError:
    """Why no worker takes jobs, although checkpoints are known."""
    if loading := snapshot.loading():
        return _not_ready(
            Code.NO_WORKERS, "STARTING", f"No worker takes jobs. Workers that load their checkpoint: {loading}."
        )
    if stalled := snapshot.stalled():
        detail = f"No worker takes jobs. Live workers whose consumer does not look for messages: {stalled}."
        return _not_ready(Code.NO_WORKERS, "STALLED", detail)
    return _not_ready(Code.NO_WORKERS, "NO_WORKERS", "No worker takes jobs.")


def _not_ready(code: Code, state: str, detail: str) -> ApiError:
    return ApiError(code, detail, retry_after_s=RETRY_WORKER_S, extra={"state": state})
