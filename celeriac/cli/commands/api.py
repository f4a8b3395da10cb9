"""`celeriac api`: run one API process."""

from __future__ import annotations

import os
from importlib.util import find_spec

import click

from celeriac.cli import options
from celeriac.cli.command import Command
from celeriac.cli.environment import check_redis_of, load_queue_settings, require


@click.command("api", cls=Command)
@options.listening
def command(host: str, port: int, reload: bool) -> None:
    """Run the HTTP API, which puts jobs into the queue.

    The queue is in the Redis at CELERIAC_REDIS_URL.
    """
    require("fastapi", "uvicorn", extra="api")
    settings = load_queue_settings()

    from api.server.server import run
    from celeriac.launcher.ports import check_port
    from tasks.logs import setup_logging

    check_port(host, port)
    check_redis_of(settings)
    setup_logging(settings)
    if reload:
        # uvicorn then starts a process with `python -c`, which would import modules of the current folder.
        os.environ["PYTHONSAFEPATH"] = "1"
    run(
        "api.app:app",
        host,
        port,
        keep_alive_s=settings.keep_alive_s,
        reload_dirs=[package_folder(package) for package in ("api", "tasks")] if reload else (),
    )


def package_folder(package: str) -> str:
    """The folder of an installed package."""
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise click.ClickException(f"The package {package} is not installed.")
    return os.path.dirname(spec.origin)
