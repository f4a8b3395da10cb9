"""The engine as a part of Celery's worker: loaded before it consumes, drained after it stopped consuming."""

from __future__ import annotations

import os
import threading
import time
from typing import Any

import structlog
from celery import bootsteps
from celery.apps.worker import install_worker_term_handler
from celery.exceptions import WorkerShutdown
from celery.worker import state
from kombu.asynchronous import get_event_loop

from tasks.errors import CardConflictError, SchemaError
from tasks.settings import settings
from worker.checkpoints.errors import CheckpointError
from worker.checkpoints.folder import find
from worker.engine_process.client import EngineLoadError
from worker.service import WorkerService
from worker.transport import current
from worker.transport.consumer import BRPOP_LATE_S, BRPOP_S

log = structlog.get_logger(__name__)

#: A stop that takes longer than this, in seconds, is ended the hard way: something hangs, most likely Redis. Jobs that
#: were not handed back are taken up by others when their leases run out.
STOP_DEADLINE_S = 5.0


class EngineStep(bootsteps.StartStopStep):
    """Owns the `WorkerService` of this process."""

    requires = ("celery.worker.components:Hub", "celery.worker.components:Pool")

    def start(self, worker: Any) -> None:
        """Load the checkpoint. Where that fails the worker ends before it takes a message."""
        # One kind of stop for all signals. Celery's warm one announces to wait for the tasks, which ours does not; its
        # cold one does wait for them, in the signal handler, where nobody hands them back.
        for name in ("SIGTERM", "SIGINT", "SIGQUIT"):
            install_worker_term_handler(worker, sig=name, how="Warm", callback=None, exitcode=0, verbose=False)
        threading.excepthook = thread_failed
        # Each slot needs a thread that waits for it.
        config = settings().model_copy(update={"slots": worker.concurrency})
        try:
            folder = find(config.checkpoint, config.checkpoint_dir)
            service = WorkerService(config, folder, worker.hostname, give_up=give_up)
            loaded = service.start(should_stop=should_stop)
        except (CheckpointError, EngineLoadError, CardConflictError, SchemaError) as error:
            log.error("cannot_serve", reason=str(error))
            raise WorkerShutdown(1) from None
        if not loaded:
            raise WorkerShutdown(0)
        current.service = service

    def stop(self, worker: Any) -> None:
        """Hand every job back. The consumer has stopped; the pool's threads and the acks follow."""
        # The consumer's last wait for a message is still on: what is handed back before it ends would come to this
        # worker, and from here to the back of the list.
        time.sleep(BRPOP_S + BRPOP_LATE_S)
        current.require().drain()

    def terminate(self, worker: Any) -> None:
        """A cold shutdown hands back as well: it takes no longer."""
        self.stop(worker)


def should_stop() -> bool:
    """Whether a signal told this worker to stop. Celery's flags hold an exit code, which may be 0, or None or False."""
    flags = (state.should_stop, state.should_terminate)
    return any(flag is not None and flag is not False for flag in flags)


def give_up(reason: str) -> None:
    """Stop the worker with exit code 1. Called from any thread but the main one."""
    log.error("giving_up", reason=reason)
    state.should_stop = 1
    hurry()


def hurry() -> None:
    """Have the main loop look at Celery's flags now, and see to it that the stop comes to its end.

    With all slots taken the loop may sleep for seconds; and what Celery does before it calls us talks to Redis, too.
    """
    watchdog = threading.Timer(STOP_DEADLINE_S, exit_hard)
    watchdog.daemon = True
    watchdog.start()
    hub = get_event_loop()
    if hub is not None:
        hub.call_soon(lambda: None)


def thread_failed(failure: threading.ExceptHookArgs) -> None:
    """A thread of ours ended by an exception: what it did is done no more, so the worker ends."""
    name = "a thread" if failure.thread is None else failure.thread.name
    error = failure.exc_value
    log.error("thread_failed", thread=name, exc_info=error)
    give_up(f"{name} failed: {type(error).__name__}")


def exit_hard() -> None:
    """End this process and its engine, whatever their threads do."""
    log.error("stop_hangs", after_s=STOP_DEADLINE_S)
    if current.service is not None:
        current.service.kill_engine()
    os._exit(1)
