"""`celeriac generate`: a prompt in, its text out."""

from __future__ import annotations

from typing import Any

import click

from celeriac.cli import options
from celeriac.cli.output import print_json, warn
from celeriac.cli.progress import follow


@click.command("generate")
@click.argument("prompt")
@options.sampling
@options.generating
@options.as_json
def command(prompt: str, url: str, as_json: bool, **request: Any) -> None:
    """Continue PROMPT ("-": the standard input) and print it with its continuation. Ctrl-C cancels the job."""
    from celeriac.client import InferenceClient

    with InferenceClient(url) as client:
        job = client.submit(options.prompt_text(prompt), **request)
        try:
            job = follow(client, job, text=not as_json)
        except (KeyboardInterrupt, BrokenPipeError):
            # Nobody reads the rest.
            client.cancel(job)
            raise
    warn(job.warnings)
    result = job.result()
    if as_json:
        print_json(result)
