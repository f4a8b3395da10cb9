"""One worker in this process: what `celeriac worker` runs."""

from __future__ import annotations

import secrets
import socket
import sys
import warnings

from tasks.settings import settings
from worker.checkpoints.errors import CheckpointError
from worker.checkpoints.folder import name_of


def run() -> int:
    """Serve the checkpoint of the settings until a signal ends it. Returns the exit code."""
    config = settings()
    try:
        checkpoint = name_of(config.checkpoint)
    except CheckpointError as error:
        print(f"celeriac worker: {error}", file=sys.stderr)
        return 2
    # Imported here: the module reads the settings when it is imported, and Celery takes a while.
    from celery.exceptions import SecurityWarning

    from worker.app import app

    name = config.worker_name or f"{checkpoint}-{secrets.token_hex(2)}"
    # Celery warns root of pickled messages; ours are JSON with an id in it.
    warnings.filterwarnings("ignore", category=SecurityWarning)
    worker = app.Worker(
        hostname=name if "@" in name else f"{name}@{socket.gethostname()}",
        loglevel=config.log_level.upper(),
        quiet=True,
        without_gossip=True,
        without_mingle=True,
    )
    worker.start()
    exit_code: int = worker.exitcode
    return exit_code
