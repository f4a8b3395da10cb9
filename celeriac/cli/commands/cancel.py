"""`celeriac cancel`: stop jobs."""

from __future__ import annotations

import click

from celeriac.cli import options
from celeriac.cli.command import Command
from celeriac.cli.output import print_row


@click.command("cancel", cls=Command)
@click.argument("job_ids", metavar="JOB_ID...", nargs=-1, required=True)
@options.url
def command(job_ids: tuple[str, ...], url: str) -> None:
    """Stop jobs. They keep their text so far. A job that has ended stays unchanged."""
    from celeriac.client import InferenceClient

    with InferenceClient(url) as client:
        for job_id in job_ids:
            job = client.cancel(job_id)
            print_row(job.id, job.status if job.done else "stopping")
