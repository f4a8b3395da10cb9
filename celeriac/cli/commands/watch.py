"""`celeriac watch`: stream a job until it has ended."""

from __future__ import annotations

import click

from celeriac.cli import options
from celeriac.cli.command import Command
from celeriac.cli.output import print_json, warn
from celeriac.cli.progress import stream_job


@click.command("watch", cls=Command)
@click.argument("job_id")
@options.url
@options.as_json
def command(job_id: str, url: str, as_json: bool) -> None:
    """Print the text of a job as it is decoded.

    Starts at the beginning of the text and ends with the job. Ctrl-C does not stop the job.
    """
    from celeriac.client import InferenceClient

    with InferenceClient(url) as client:
        job = stream_job(client, client.job(job_id), text=not as_json)
    warn(job.warnings)
    if as_json:
        print_json(job.raw)
    job.result()
