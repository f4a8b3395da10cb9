"""`celeriac flower`: run Flower, the web monitor of Celery. A task's id is the job's id."""

from __future__ import annotations

import os

import click

from celeriac.cli.command import Command
from celeriac.cli.environment import check_redis_of, load_queue_settings, require

#: Number of tasks that Flower keeps in memory. Its default, 100,000, takes gigabytes.
MAX_TASKS = 10_000
#: Seconds after which Flower removes an offline worker from its list.
PURGE_OFFLINE_WORKERS_S = 60
#: Variables of Flower that `celeriac flower` leaves in the environment: they protect the page with a login or with TLS.
PROTECTING_VARIABLES = (
    *("FLOWER_AUTH", "FLOWER_BASIC_AUTH", "FLOWER_OAUTH2_", "FLOWER_GITHUB_", "FLOWER_GITLAB_", "FLOWER_COOKIE_SECRET"),
    *("FLOWER_CERTFILE", "FLOWER_KEYFILE", "FLOWER_CA_CERTS"),
)
#: Variables that would make Flower write its metrics into files of another program.
METRICS_VARIABLES = ("PROMETHEUS_MULTIPROC_DIR", "prometheus_multiproc_dir")


@click.command("flower", cls=Command)
@click.option("--address", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=click.IntRange(1, 65535), default=5555, show_default=True, help="Port to listen on.")
@click.option(
    "--basic-auth",
    envvar="FLOWER_BASIC_AUTH",
    metavar="USER:PASSWORD",
    help="Require this login.  [env: FLOWER_BASIC_AUTH, which `ps` does not show]",
)
@click.option("--url-prefix", envvar="FLOWER_URL_PREFIX", help="URL path under which a proxy serves Flower.")
def command(address: str, port: int, basic_auth: str | None, url_prefix: str | None) -> None:
    """Run Flower, the web monitor of Celery, read-only.

    The queue is in the Redis at CELERIAC_REDIS_URL.
    """
    require("flower", extra="flower")
    settings = load_queue_settings()
    from celeriac.launcher.ports import check_port, is_loopback

    check_port(address, port)
    # Flower reads these variables itself, and would take an empty one as a value.
    for name in [name for name, value in os.environ.items() if name.startswith("FLOWER_") and not value]:
        del os.environ[name]
    if not basic_auth and not is_loopback(address):
        click.echo(
            f"Warning: everyone who can reach {address}:{port} can see the jobs' ids and the workers. "
            "Set FLOWER_BASIC_AUTH=USER:PASSWORD.",
            err=True,
        )
    check_redis_of(settings)
    remove_variables()
    if basic_auth:
        # Flower reads this variable. On its command line, other users of this machine could see the password.
        os.environ["FLOWER_BASIC_AUTH"] = basic_auth
    from tasks.celery_app import make_app
    from tasks.logs.output import output
    from tasks.logs.text_stream import replace_standard_streams

    replace_standard_streams(output)

    argv = [
        "--quiet",
        "flower",
        # Flower would run a `flowerconfig.py` of the current folder.
        f"--conf={os.devnull}",
        f"--address={address}",
        f"--port={port}",
        "--read_only=True",
        f"--max_tasks={MAX_TASKS}",
        f"--purge_offline_workers={PURGE_OFFLINE_WORKERS_S}",
        *([f"--url_prefix={url_prefix}"] if url_prefix else []),
    ]
    make_app(settings).start(argv)


def remove_variables() -> None:
    """Remove the variables that would change Flower, except those that protect its page.

    Flower cannot ignore them: Kubernetes sets FLOWER_PORT=tcp://10.0.0.7:5555 in the containers beside a service that
    is called `flower`, and Flower ends because this is not a number.
    """
    for name in list(os.environ):
        if name in METRICS_VARIABLES or (name.startswith("FLOWER_") and not name.startswith(PROTECTING_VARIABLES)):
            del os.environ[name]
