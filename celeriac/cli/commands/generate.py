"""`celeriac generate`: continue a prompt and print the text."""

from __future__ import annotations

from typing import Any

import click

from celeriac.cli import options
from celeriac.cli.output import print_json, warn
from celeriac.cli.progress import stream_job


@click.command("generate")
@click.argument("prompt")
@options.sampling
@options.generating
@options.as_json
def command(prompt: str, url: str, as_json: bool, **request: Any) -> None:
    """Continue a prompt and print it with its continuation.

    PROMPT is the text; "-" reads standard input. Ctrl-C cancels the job.
    """
    from celeriac.client import InferenceClient

    with InferenceClient(url) as client:
        job = client.submit(options.prompt_text(prompt), **request)
        try:
            job = stream_job(client, job, text=not as_json)
        except (KeyboardInterrupt, BrokenPipeError):
            # The rest of the text has no reader.
            client.cancel(job)
            raise
    warn(job.warnings)
    result = job.result()
    if as_json:
        print_json(result)
