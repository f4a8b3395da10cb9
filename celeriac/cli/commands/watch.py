"""`celeriac watch`: follow a job to its end."""

from __future__ import annotations

import click

from celeriac.cli import options
from celeriac.cli.output import print_json, warn
from celeriac.cli.progress import follow


@click.command("watch")
@click.argument("job_id")
@options.url
@options.as_json
def command(job_id: str, url: str, as_json: bool) -> None:
    """Print the text of the job JOB_ID as it is decoded, until the job is over. Ctrl-C leaves the job alone."""
    from celeriac.client import InferenceClient

    with InferenceClient(url) as client:
        job = follow(client, client.job(job_id), text=not as_json)
    warn(job.warnings)
    if as_json:
        print_json(job.raw)
    job.result()
