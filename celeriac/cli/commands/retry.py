"""`celeriac retry`: resubmit jobs that did not succeed."""

from __future__ import annotations

import click

from celeriac.cli import options
from celeriac.cli.command import Command
from celeriac.cli.output import print_row


@click.command("retry", cls=Command)
@click.argument("job_ids", metavar="JOB_ID...", nargs=-1, required=True)
@options.url
def command(job_ids: tuple[str, ...], url: str) -> None:
    """Submit failed, expired or cancelled jobs again, and print the ids of the new jobs."""
    from celeriac.client import InferenceClient

    with InferenceClient(url) as client:
        for job_id in job_ids:
            print_row(client.retry(job_id).id)
