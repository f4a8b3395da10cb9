"""`celeriac serve`: everything on one machine."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from celeriac.cli import options
from celeriac.cli.environment import load_queue_settings, readable_checkpoint_errors, require


@click.command("serve")
@options.checkpoint
@options.listening
@options.device
@options.weights
@click.option("--workers", type=click.IntRange(1, 64), default=1, show_default=True, help="Workers to start.")
@click.option("--flower", is_flag=True, help="Run Flower as well, for this machine alone.")
@click.option("--flower-port", type=click.IntRange(1, 65535), default=5555, show_default=True, help="Port of Flower.")
@click.option(
    "--data-dir",
    type=click.Path(path_type=Path),
    help="Where Redis keeps the jobs, in a folder for each port.  [env: CELERIAC_DATA_DIR; default: .celeriac]",
)
def command(
    checkpoint: str,
    host: str,
    port: int,
    device: str,
    weights: str,
    reload: bool,
    workers: int,
    flower: bool,
    flower_port: int,
    data_dir: Path | None,
) -> None:
    """Serve a checkpoint on this machine: an embedded Redis, workers, the API, until Ctrl-C.

    With CELERIAC_REDIS_URL set that Redis is used, and none is started.
    """
    if flower and flower_port == port:
        raise click.UsageError("--port and --flower-port must differ.")
    require("fastapi", "uvicorn", "torch", *(["flower"] if flower else []), extra="serve")
    settings = load_queue_settings()
    from celeriac.launcher.plan import Options, serve

    chosen = Options(
        checkpoint=checkpoint,
        host=host,
        port=port,
        device=device,
        weights=weights,
        reload=reload,
        workers=workers,
        flower=flower,
        flower_port=flower_port,
        data_dir=settings.data_dir if data_dir is None else data_dir,
    )
    with readable_checkpoint_errors():
        code = serve(chosen, settings)
    sys.exit(code)
