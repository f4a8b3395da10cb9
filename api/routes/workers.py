"""`GET /v1/workers`: the live workers."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from api.http.openapi import QUEUE_CODES, problems
from api.http.problems import Code
from api.http.strict_query import StrictQueryRoute
from api.jobs.job_view import moment
from api.schemas.workers import SwitchingWorkerResponse, WorkerList, WorkerResponse
from api.services import ServicesDep
from tasks.switching_info import ChildState, SwitchingInfo
from tasks.worker_info import WorkerInfo

router = APIRouter(route_class=StrictQueryRoute, prefix="/v1/workers", tags=["workers"])


@router.get(
    "", response_model=WorkerList, summary="Live workers", responses=problems((*QUEUE_CODES, Code.INVALID_REQUEST))
)
async def workers(
    services: ServicesDep,
    model: Annotated[str | None, Query(description="Only workers that serve or offer this checkpoint.")] = None,
) -> WorkerList:
    """The live workers by name, each as of its last heartbeat."""
    chosen = [worker for worker in await services.catalog.workers() if model in (None, worker.checkpoint)]
    switching = await services.catalog.switching_workers(model)
    return WorkerList(
        data=[_response(worker) for worker in sorted(chosen, key=lambda worker: worker.name)],
        switching=[_switching(worker) for worker in switching],
    )


def _response(worker: WorkerInfo) -> WorkerResponse:
    return WorkerResponse(
        name=worker.name,
        model=worker.checkpoint,
        state=worker.state,
        device=worker.device,
        host=worker.host,
        slots=worker.slots,
        running=worker.running,
        kv_tokens=worker.kv_tokens,
        kv_tokens_free=worker.kv_tokens_free,
        tokens_per_s=worker.tokens_per_s,
        started_at=moment(worker.started_at),
        heartbeat_at=moment(worker.heartbeat_at),
    )


def _switching(worker: SwitchingInfo) -> SwitchingWorkerResponse:
    return SwitchingWorkerResponse(
        name=worker.name,
        device=worker.device,
        host=worker.host,
        offers=worker.offers,
        loaded=list(worker.in_state(ChildState.LOADED)),
        loading=list(worker.in_state(ChildState.LOADING)),
        retiring=list(worker.in_state(ChildState.RETIRING)),
        slots=worker.slots,
        memory_bytes=sum(child.memory_bytes for child in worker.children),
        budget_bytes=worker.budget_bytes,
        started_at=moment(worker.started_at),
        heartbeat_at=moment(worker.heartbeat_at),
    )
