"""The engine as a part of Celery's worker: loaded before the worker consumes, drained after it stopped consuming."""

from __future__ import annotations

import time
from typing import Any

import structlog
from celery import bootsteps
from celery.exceptions import WorkerShutdown
from celery.worker import state
from redis.exceptions import ResponseError

from tasks.errors import CardConflictError, RedisUnusableError, SchemaError
from tasks.settings import settings
from worker.checkpoints.errors import CheckpointError
from worker.checkpoints.folder import find
from worker.engine_process.client import EngineLoadError
from worker.service import TransportHooks, WorkerService
from worker.transport import current, process_hooks
from worker.transport.consumer import BRPOP_LATE_S, BRPOP_S
from worker.transport.consumption import consumption
from worker.transport.shutdown import give_up, should_stop, wake_main_loop

log = structlog.get_logger(__name__)


#: What the service may ask of Celery. `requests` is a plain dict, so a copy of its keys is safe in every thread.
HOOKS = TransportHooks(
    give_up=give_up,
    should_stop=should_stop,
    stalled=lambda: consumption.stalled,
    held_jobs=lambda: list(state.requests),
    wake=wake_main_loop,
)


class EngineStep(bootsteps.StartStopStep):
    """Starts and drains the `WorkerService` of this process."""

    requires = ("celery.worker.components:Hub", "celery.worker.components:Pool")

    def start(self, worker: Any) -> None:
        """Load the checkpoint. If that fails, the worker ends before it takes a message."""
        process_hooks.install(worker)
        # Each slot needs a thread of the pool, so the pool's size decides.
        config = settings().model_copy(update={"slots": worker.concurrency})
        try:
            folder = find(config.checkpoint, config.checkpoint_dir, name=config.checkpoint_name)
            service = WorkerService.start(config, folder, worker.hostname, HOOKS)
        except (
            CheckpointError,
            EngineLoadError,
            CardConflictError,
            RedisUnusableError,
            SchemaError,
            ResponseError,
        ) as error:
            log.error("cannot_serve", reason=str(error))
            raise WorkerShutdown(1) from None
        if service is None:
            raise WorkerShutdown(0)
        current.service = service
        consumption.is_open = lambda: service.takes_messages
        consumption.looked()

    def stop(self, worker: Any) -> None:
        """Release every job. The consumer has stopped; the pool and the acknowledgements end after this."""
        # The consumer's last BRPOP may still be in progress. If jobs were released before it ends, this worker would
        # receive one of their messages, and Celery would put it at the end of the list.
        service = current.require()
        time.sleep(max(0.0, BRPOP_S + BRPOP_LATE_S - service.draining_s))
        service.drain()

    def terminate(self, worker: Any) -> None:
        """A cold shutdown releases jobs as well: that takes no longer."""
        self.stop(worker)
