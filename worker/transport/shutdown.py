"""The stop of a worker process: on a signal, when it cannot continue, or when another checkpoint needs its place."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable

import structlog
from celery.platforms import EX_OK
from celery.worker import state
from kombu.asynchronous import get_event_loop

from tasks.logs import flush_logs
from worker.transport import current

log = structlog.get_logger(__name__)

#: A stop may take this long, in seconds; then the process exits at once. Something hangs then, most likely Redis. Jobs
#: that were not released are reclaimed when their leases run out.
STOP_DEADLINE_S = 5.0


def should_stop() -> bool:
    """Whether the worker stops. Each of Celery's two flags is None, False, or an exit code, which may be 0."""
    flags = (state.should_stop, state.should_terminate)
    return any(flag is not None and flag is not False for flag in flags)


def give_up(reason: str) -> None:
    """Stop the worker with exit code 1. May be called from any thread but the main one."""
    log.error("giving_up", reason=reason)
    state.should_stop = 1
    begin_stop()


def retire(on_unloaded: Callable[[], None]) -> None:
    """Take no more messages, wait until the jobs that run here have ended, and stop the worker.

    `on_unloaded` is called when the checkpoint is out of memory, which is some time before the end of the process. A
    worker that still loads its checkpoint stops at once. Not for the main thread.
    """
    log.info("retiring")
    if current.service is not None:
        current.service.retire()
        on_unloaded()
    stop()


def stop() -> None:
    """Stop the worker as SIGTERM does: its jobs go back to the queue. Not for a signal handler."""
    state.should_stop = EX_OK
    begin_stop()


def begin_stop() -> None:
    """Start the deadline of the stop, and wake the main loop so that it reads Celery's flags now.

    Without that the loop may wait for seconds if all slots are taken. The deadline covers what Celery does before it
    stops our bootstep, which includes calls to Redis.
    """
    deadline = threading.Timer(STOP_DEADLINE_S, exit_at_once)
    deadline.daemon = True
    deadline.start()
    wake_main_loop()
    if current.service is not None:
        current.service.begin_drain()


def wake_main_loop() -> None:
    """Make Celery's main loop turn now. May be called from any thread."""
    hub = get_event_loop()
    if hub is not None:
        hub.call_soon(lambda: None)


def exit_at_once() -> None:
    """Kill the engine and exit with code 1, whatever other threads do."""
    log.error("stop_timed_out", after_s=STOP_DEADLINE_S)
    if current.service is not None:
        current.service.kill_engine()
    flush_logs()
    os._exit(1)
