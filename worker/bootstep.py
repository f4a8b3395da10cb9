"""The engine as a part of Celery's worker: loaded before it consumes, drained after it stopped consuming."""

from __future__ import annotations

from typing import Any

import structlog
from celery import bootsteps
from celery.exceptions import WorkerShutdown
from celery.worker import state

from tasks.errors import CardConflictError, SchemaError
from tasks.settings import settings
from worker import current
from worker.checkpoints.errors import CheckpointError
from worker.checkpoints.folder import find
from worker.engine_client import EngineLoadError
from worker.service import WorkerService

log = structlog.get_logger(__name__)


class EngineStep(bootsteps.StartStopStep):
    """Owns the `WorkerService` of this process."""

    requires = ("celery.worker.components:Hub", "celery.worker.components:Pool")

    def start(self, worker: Any) -> None:
        """Load the checkpoint. Where that fails the worker ends before it takes a message."""
        config = settings()
        try:
            folder = find(config.checkpoint, config.checkpoint_dir)
            current.service = WorkerService(config, folder, worker.hostname, give_up=give_up)
            if not current.service.start(should_stop=should_stop):
                raise WorkerShutdown(0)
        except (CheckpointError, EngineLoadError, CardConflictError, SchemaError) as error:
            log.error("cannot_serve", reason=str(error))
            raise WorkerShutdown(1) from None

    def stop(self, worker: Any) -> None:
        """Hand every job back. The consumer has stopped, the pool has not."""
        if current.service is not None:
            current.service.drain(lambda: pump(worker.hub))

    def terminate(self, worker: Any) -> None:
        """A cold shutdown hands back as well: it takes no longer."""
        self.stop(worker)


def pump(hub: Any) -> None:
    """Run the hub's pending callbacks, which are acks: nobody else does once the consumer is stopped."""
    # `_pop_ready` is private to kombu; tests/integration/test_worker_stop.py notices when it goes away.
    for callback in hub._pop_ready():
        callback()


def should_stop() -> bool:
    """Whether a signal told this worker to stop. Celery's flags hold an exit code, which may be 0, or None or False."""
    flags = (state.should_stop, state.should_terminate)
    return any(flag is not None and flag is not False for flag in flags)


def give_up(reason: str) -> None:
    """Stop the worker with exit code 1."""
    log.error("giving_up", reason=reason)
    state.should_stop = 1
