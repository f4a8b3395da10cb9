"""`celeriac worker`: run one worker, which serves one checkpoint, or those of a folder in turn."""

from __future__ import annotations

import os
import sys

import click

from celeriac.cli import options
from celeriac.cli.command import Command
from celeriac.cli.environment import load_queue_settings, readable_checkpoint_errors, require


@click.command("worker", cls=Command)
@options.checkpoints
@options.checkpoint_folder
@click.option("--name", help="Name of the checkpoint for clients.  [env: CELERIAC_CHECKPOINT_NAME]")
@options.device
@options.weights
@options.compute
@click.option("--slots", type=click.IntRange(1, 1024), help="Jobs decoded at the same time.  [env: CELERIAC_SLOTS]")
@click.option("--worker-name", help="Name of this worker.  [env: CELERIAC_WORKER_NAME]")
def command(
    checkpoints: tuple[str, ...],
    folder: str | None,
    memory_mb: int | None,
    name: str | None,
    device: str,
    weights: str,
    compute: str,
    slots: int | None,
    worker_name: str | None,
) -> None:
    """Run a worker, which decodes the jobs of one checkpoint.

    CHECKPOINT is the path of a folder, its name under CELERIAC_CHECKPOINT_DIR, or a run of nanochat such as sft:d20;
    @STEP may follow. The queue is in the Redis at CELERIAC_REDIS_URL. Several workers share its jobs.

    With --checkpoints FOLDER the worker offers every checkpoint in the folder, also those that are written to it later,
    and loads one when jobs wait for it.
    """
    if len(checkpoints) > 1:
        raise click.UsageError(
            f"A worker serves one checkpoint, not {' and '.join(checkpoints)}. Start a worker for each, or use "
            "`celeriac serve`, which does that. `--checkpoints FOLDER` serves those of a folder in turn."
        )
    require("torch", extra="worker")
    # Celery and the engine process read their settings from the environment.
    chosen = {
        "CHECKPOINT": next(iter(checkpoints), None),
        "CHECKPOINT_NAME": name,
        "MEMORY_MB": memory_mb,
        "DEVICE": device,
        "WEIGHTS": weights,
        "COMPUTE": compute,
        "SLOTS": slots,
        "WORKER_NAME": worker_name,
    }
    os.environ.update({f"CELERIAC_{key}": str(value) for key, value in chosen.items() if value is not None})
    settings = load_queue_settings()
    offered = options.folder_of(settings, given=folder, checkpoints=checkpoints, names=name is not None)
    if offered is not None:
        from worker.switching.main import run as run_switching

        sys.exit(run_switching(settings, offered))
    checkpoint = options.checkpoint_of(settings)
    # The worker would find the same errors, but only after Celery is imported, and would log them.
    with readable_checkpoint_errors():
        from worker.checkpoints.folder import find
        from worker.checkpoints.tokenizers import check_tokenizer

        check_tokenizer(find(checkpoint, settings.checkpoint_dir, name=settings.checkpoint_name))
    from worker.main import run

    sys.exit(run())
