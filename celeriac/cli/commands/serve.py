"""`celeriac serve`: run all roles on one machine."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import click

from celeriac.cli import options
from celeriac.cli.command import Command
from celeriac.cli.environment import check_redis_of, load_queue_settings, readable_checkpoint_errors, require

if TYPE_CHECKING:
    from tasks.settings import Settings


@click.command("serve", cls=Command)
@options.checkpoints
@options.checkpoint_folder
@click.option(
    "--name",
    "names",
    multiple=True,
    help="Name of the checkpoint for clients. With several checkpoints: repeat it, in the order of the checkpoints.  "
    "[env: CELERIAC_CHECKPOINT_NAME]",
)
@options.serving
def command(
    checkpoints: tuple[str, ...],
    folder: str | None,
    memory_mb: int | None,
    names: tuple[str, ...],
    host: str,
    port: int,
    device: str,
    weights: str,
    compute: str,
    reload: bool,
    workers: int,
    flower: bool,
    flower_port: int,
    data_dir: str | None,
) -> None:
    """Serve checkpoints on this machine, until Ctrl-C.

    CHECKPOINT is the path of a folder, its name under CELERIAC_CHECKPOINT_DIR, or base:TAG, mid:TAG, sft:TAG or rl:TAG
    in nanochat's own folder (NANOCHAT_BASE_DIR); @STEP may follow. A model of Hugging Face that `hf download` has
    stored can be given as OWNER/NAME. Several checkpoints get workers of their own, and requests choose one with
    `model`. Without a checkpoint, those that are found are listed. With --checkpoints FOLDER, every checkpoint in a
    folder can be requested, and workers load one when jobs wait for it.

    Starts Redis, the workers and the API. If CELERIAC_REDIS_URL is set, that Redis is used instead of a new one.
    """
    if flower and flower_port == port:
        raise click.UsageError("--port and --flower-port must differ.")
    require("fastapi", "uvicorn", "torch", *(["flower"] if flower else []), extra="serve")
    if memory_mb is not None:
        # The workers read their settings from the environment.
        os.environ["CELERIAC_MEMORY_MB"] = str(memory_mb)
    settings = load_queue_settings()
    offered = options.folder_of(settings, given=folder, checkpoints=checkpoints, names=bool(names))
    if offered is None:
        checkpoints = checkpoints or (options.checkpoint_of(settings),)
        names = _names_of(checkpoints, names, settings)
    if "redis_url" in settings.model_fields_set:
        check_redis_of(settings)
    from pathlib import Path

    from celeriac.launcher.plan import Options, serve

    chosen = Options(
        checkpoints=checkpoints,
        names=names,
        folder=offered,
        host=host,
        port=port,
        device=device,
        weights=weights,
        compute=compute,
        reload=reload,
        workers=workers,
        flower=flower,
        flower_port=flower_port,
        data_dir=settings.data_dir if data_dir is None else Path(data_dir),
    )
    with readable_checkpoint_errors():
        code = serve(chosen, settings)
    sys.exit(code)


def _names_of(checkpoints: tuple[str, ...], names: tuple[str, ...], settings: Settings) -> tuple[str, ...]:
    """The names for clients, one for each checkpoint or none at all. Raises UsageError."""
    if not names and settings.checkpoint_name is not None:
        names = (settings.checkpoint_name,)
    if names and len(names) != len(checkpoints):
        raise click.UsageError(
            f"{len(checkpoints)} checkpoints need {len(checkpoints)} names, not {len(names)}. Give --name once for "
            "each checkpoint, in the same order, or give no name (--name, CELERIAC_CHECKPOINT_NAME)."
        )
    return names
