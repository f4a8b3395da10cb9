"""Hooks that the worker replaces in its whole process: signal handlers, and the hook for failed threads.

`task_request` and `control` also replace some of Celery's control commands.
"""

from __future__ import annotations

import threading
from typing import Any

import structlog
from celery.apps.worker import install_worker_term_handler

from worker.transport.shutdown import give_up

log = structlog.get_logger(__name__)


def install(worker: Any) -> None:
    """Install the hooks for a Celery worker. Call it in the main thread, after Celery installed its own handlers."""
    _stop_alike_on_all_signals(worker)
    threading.excepthook = _thread_failed


def _stop_alike_on_all_signals(worker: Any) -> None:
    """Make SIGTERM, SIGINT and SIGQUIT stop the worker in the same way.

    With Celery's own handlers, a warm stop prints that it waits for the tasks, which this worker does not. A cold stop
    does wait for them, inside the signal handler: the bootstep that releases the jobs would run too late. Celery has no
    setting for this.
    """
    for name in ("SIGTERM", "SIGINT", "SIGQUIT"):
        install_worker_term_handler(worker, sig=name, how="Warm", callback=None, exitcode=0, verbose=False)


def _thread_failed(failure: threading.ExceptHookArgs) -> None:
    """Stop the worker after an uncaught exception in a thread.

    Without this hook Python prints the exception and the thread's work is no longer done: for example, no lease is
    renewed.
    """
    name = "a thread" if failure.thread is None else failure.thread.name
    error = failure.exc_value
    log.error("thread_failed", thread=name, exc_info=error)
    give_up(f"{name} failed: {type(error).__name__}")
