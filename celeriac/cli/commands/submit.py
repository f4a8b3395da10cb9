"""`celeriac submit`: queue a generation and go."""

from __future__ import annotations

from typing import Any

import click

from celeriac.cli import options
from celeriac.cli.output import print_json, warn


@click.command("submit")
@click.argument("prompt")
@options.sampling
@click.option("--priority", type=click.IntRange(0, 9), default=5, show_default=True, help="0 is served first.")
@click.option("--wait-for-worker", is_flag=True, help="Queue it even if no worker serves the checkpoint now.")
@options.limits
@options.generating
@options.as_json
def command(prompt: str, url: str, as_json: bool, **request: Any) -> None:
    """Queue a generation from PROMPT ("-": from the standard input) and print the job's id."""
    from celeriac.client import InferenceClient

    with InferenceClient(url) as client:
        job = client.submit(options.prompt_text(prompt), **request)
    warn(job.warnings)
    if as_json:
        print_json(job.raw)
    else:
        click.echo(job.id)
