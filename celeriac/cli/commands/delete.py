"""`celeriac delete`: delete jobs."""

from __future__ import annotations

import click

from celeriac.cli import options
from celeriac.cli.command import Command
from celeriac.cli.output import print_row


@click.command("delete", cls=Command)
@click.argument("job_ids", metavar="JOB_ID...", nargs=-1, required=True)
@options.url
def command(job_ids: tuple[str, ...], url: str) -> None:
    """Delete jobs with their prompts and texts. A job that has not ended is stopped."""
    from celeriac.client import InferenceClient

    with InferenceClient(url) as client:
        for job_id in job_ids:
            client.delete(job_id)
            print_row(job_id, "deleted")
