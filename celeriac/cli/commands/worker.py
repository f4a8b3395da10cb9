"""`celeriac worker`: run one worker, which serves one checkpoint."""

from __future__ import annotations

import os
import sys

import click

from celeriac.cli import options
from celeriac.cli.environment import load_queue_settings, require


@click.command("worker")
@options.checkpoint
@options.device
@options.weights
@click.option("--slots", type=click.IntRange(1, 1024), help="Jobs decoded at the same time.  [env: CELERIAC_SLOTS]")
@click.option("--name", help="Name of this worker.  [env: CELERIAC_WORKER_NAME]")
def command(checkpoint: str, device: str, weights: str, slots: int | None, name: str | None) -> None:
    """Run a worker, which decodes the jobs of one checkpoint.

    The queue is in the Redis at CELERIAC_REDIS_URL. Several workers share its jobs.
    """
    require("torch", extra="worker")
    # Celery and the engine process read their settings from the environment.
    chosen = {"CHECKPOINT": checkpoint, "DEVICE": device, "WEIGHTS": weights, "SLOTS": slots, "WORKER_NAME": name}
    os.environ.update({f"CELERIAC_{key}": str(value) for key, value in chosen.items() if value is not None})
    load_queue_settings()
    from worker.main import run

    sys.exit(run())
