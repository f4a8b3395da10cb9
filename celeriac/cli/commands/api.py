"""`celeriac api`: the front end alone."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import click

from celeriac.cli import options
from celeriac.cli.environment import load_queue_settings, require

#: How long requests that run at the end may take, in seconds. Their jobs go on in any case.
GRACE_S = 5


@click.command("api")
@options.listening
def command(host: str, port: int, reload: bool) -> None:
    """Run the API: HTTP in, jobs out."""
    require("fastapi", "uvicorn", extra="api")
    settings = load_queue_settings()
    import uvicorn

    from celeriac.launcher.ports import check_port
    from tasks.logs import setup_logging

    check_port(host, port)
    setup_logging(settings)
    uvicorn.run(
        "api.app:app",
        host=host,
        port=port,
        reload=reload,
        reload_dirs=[folder_of(package) for package in ("api", "tasks")] if reload else None,
        # Our own logging shows uvicorn's lines as well, and has one for each request.
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=GRACE_S,
    )


def folder_of(package: str) -> str:
    """Where a package of ours lies."""
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise click.ClickException(f"The package {package} is not installed.")
    return str(Path(spec.origin).parent)
