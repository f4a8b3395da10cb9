"""`celeriac generate`: continue a prompt and print the text."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any

import click

from celeriac.cli import options
from celeriac.cli.command import Command
from celeriac.cli.input import prompt_text
from celeriac.cli.output import print_json, warn
from celeriac.cli.progress import stream_job
from celeriac.cli.signals import exit_on_stop_signals
from celeriac.errors import CeleriacError

if TYPE_CHECKING:
    from celeriac.client import Job


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
    key = str(uuid.uuid4())
    job: Job | None = None
    with InferenceClient(url) as client, exit_on_stop_signals():
        try:
            job = client.submit(text, idempotency_key=key, **request)
            job = stream_job(client, job, text=not as_json)
        except CeleriacError:
            raise
        except (KeyboardInterrupt, SystemExit, OSError, UnicodeEncodeError):
            # The rest of the text has no reader.
            try:
                if job is None:
                    job = submitted(url, text, key, request)
                client.cancel(job)
            except CeleriacError as error:
                warn([f"The job may still run: {error}"])
            raise
    warn(job.warnings)
    result = job.result()
    if as_json:
        print_json(result)


def submitted(url: str, text: str, key: str, request: dict[str, Any]) -> Job:
    """The job of a submission that was interrupted. The server may have it: the key finds it, without retries."""
    from celeriac.client import InferenceClient

    with InferenceClient(url, retry_s=0.0) as client:
        return client.submit(text, idempotency_key=key, **request)
