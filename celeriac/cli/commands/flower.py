"""`celeriac flower`: Celery's monitor on the workers and jobs, where tasks have the jobs' ids."""

from __future__ import annotations

import os

import click

from celeriac.cli.environment import load_queue_settings, require

#: Tasks that Flower remembers; its default of 100,000 grows to gigabytes.
MAX_TASKS = 10_000
#: After this many seconds it forgets a worker that is gone.
PURGE_OFFLINE_WORKERS_S = 60


@click.command("flower")
@click.option("--address", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=click.IntRange(1, 65535), default=5555, show_default=True, help="Port to listen on.")
@click.option(
    "--basic-auth",
    envvar="FLOWER_BASIC_AUTH",
    metavar="USER:PASSWORD",
    help="Who may look.  [env: FLOWER_BASIC_AUTH, which `ps` does not show]",
)
@click.option("--url-prefix", envvar="FLOWER_URL_PREFIX", help="Path under which a proxy shows it.")
def command(address: str, port: int, basic_auth: str | None, url_prefix: str | None) -> None:
    """Run Flower on this queue, for looking only."""
    require("flower", extra="flower")
    settings = load_queue_settings()
    from celeriac.launcher.ports import check_port, is_loopback

    check_port(address, port)
    if basic_auth is None and not is_loopback(address):
        click.echo(
            f"Warning: whoever reaches {address}:{port} can look; set FLOWER_BASIC_AUTH=USER:PASSWORD.", err=True
        )
    if basic_auth is not None:
        # Flower reads it there; on its command line other users of this machine could see it.
        os.environ["FLOWER_BASIC_AUTH"] = basic_auth
    from tasks.celery_app import make_app

    argv = [
        "--quiet",
        "flower",
        f"--address={address}",
        f"--port={port}",
        "--read_only=True",
        f"--max_tasks={MAX_TASKS}",
        f"--purge_offline_workers={PURGE_OFFLINE_WORKERS_S}",
        *([] if url_prefix is None else [f"--url_prefix={url_prefix}"]),
    ]
    make_app(settings).start(argv)
