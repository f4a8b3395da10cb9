"""One worker in this process: what `celeriac worker` runs."""

from __future__ import annotations

import sys
import warnings

from tasks.errors import ConfigurationError
from tasks.settings import settings


def run() -> int:
    """Serve the checkpoint of the settings until a signal ends it. Returns the exit code."""
    # Celery warns root of pickled messages; ours are JSON with an id in it.
    from celery.exceptions import SecurityWarning

    warnings.filterwarnings("ignore", category=SecurityWarning)
    try:
        # Imported here: the module reads the settings, and Celery takes a while.
        from worker.app import app
    except ConfigurationError as error:
        print(f"celeriac worker: {error}", file=sys.stderr)
        return 2
    worker = app.Worker(loglevel=settings().log_level.upper(), quiet=True, without_gossip=True, without_mingle=True)
    worker.start()
    exit_code: int = worker.exitcode
    return exit_code
