"""`celeriac generate`: continue a prompt and print the text."""

from __future__ import annotations

from typing import Any

import click

from celeriac.cli import options
from celeriac.cli.command import Command
from celeriac.cli.input import prompt_text
from celeriac.cli.output import print_json, warn
from celeriac.cli.own_job import OwnJob
from celeriac.cli.progress import stream_job
from celeriac.cli.signals import exit_on_stop_signals
from celeriac.errors import CeleriacError


@click.command("generate", cls=Command)
@click.argument("prompt")
@options.sampling
@options.generating
@options.as_json
def command(prompt: str, url: str, as_json: bool, **request: Any) -> None:
    """Continue a prompt and print it with its continuation.

    PROMPT is the text; "-" reads standard input. Ctrl-C, SIGTERM and SIGHUP cancel the job.
    """
    from celeriac.client import InferenceClient

    text = prompt_text(prompt)
    with InferenceClient(url) as client, exit_on_stop_signals():
        own = OwnJob(client, {"prompt": text, **request})
        try:
            job = stream_job(client, own.submit(), text=not as_json)
        except CeleriacError:
            raise
        except (KeyboardInterrupt, SystemExit, OSError, UnicodeEncodeError):
            # The rest of the text has no reader.
            own.cancel()
            raise
    warn(job.warnings)
    result = job.result()
    if as_json:
        print_json(result)
