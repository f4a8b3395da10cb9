"""`celeriac submit`: queue a generation without waiting for it."""

from __future__ import annotations

from typing import Any

import click

from celeriac.cli import options
from celeriac.cli.command import Command
from celeriac.cli.input import prompt_text
from celeriac.cli.output import print_json, print_row, warn


@click.command("submit", cls=Command)
@click.argument("prompt")
@options.sampling
@click.option("--priority", type=click.IntRange(0, 9), default=5, show_default=True, help="0 is served first, 9 last.")
@click.option("--wait-for-worker", is_flag=True, help="Accept the job even if no worker serves the checkpoint now.")
@options.limits
@options.generating
@options.as_json
def command(prompt: str, url: str, as_json: bool, **request: Any) -> None:
    """Queue a generation and print the job's id.

    PROMPT is the text to continue; "-" reads standard input.
    """
    from celeriac.client import InferenceClient

    with InferenceClient(url) as client:
        job = client.submit(prompt_text(prompt), **request)
    warn(job.warnings)
    if as_json:
        print_json(job.raw)
    else:
        print_row(job.id)
