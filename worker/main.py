"""One worker in this process: what `celeriac worker` runs."""

from __future__ import annotations


def run() -> int:
    """Serve the checkpoint of the settings until a signal stops the worker. Returns the exit code."""
    # Imported here, because the module reads the settings and importing Celery takes a while.
    from worker.app import run_worker

    return run_worker()
