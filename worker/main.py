"""One worker in this process: what `celeriac worker` runs."""

from __future__ import annotations

import sys

from tasks.errors import ConfigurationError


def run() -> int:
    """Serve the checkpoint of the settings until a signal stops the worker. Returns the exit code."""
    try:
        # Imported here, because the module reads the settings and importing Celery takes a while.
        from worker.app import run_worker
    except ConfigurationError as error:
        print(f"celeriac worker: {error}", file=sys.stderr)
        return 2
    return run_worker()
