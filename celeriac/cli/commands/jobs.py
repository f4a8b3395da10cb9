"""`celeriac jobs`: list the newest jobs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from celeriac.cli import options
from celeriac.cli.command import Command
from celeriac.cli.output import print_json, print_table

if TYPE_CHECKING:
    from celeriac.client import Job

STATUSES = ("queued", "running", "succeeded", "failed", "cancelled", "expired")
#: Most characters of a prompt in the table.
PROMPT_WIDTH = 30


@click.command("jobs", cls=Command)
@click.option("--status", type=click.Choice(STATUSES), help="List only jobs in this status.")
@click.option("--limit", type=click.IntRange(min=1), default=20, show_default=True, help="Most jobs to list.")
@options.url
@options.as_json
def command(status: str | None, limit: int, url: str, as_json: bool) -> None:
    """List the newest jobs."""
    from celeriac.client import InferenceClient

    with InferenceClient(url) as client:
        jobs = client.jobs(status, limit=limit)
    if as_json:
        print_json([job.raw for job in jobs])
    else:
        columns = ("ID", "STATUS", "TOKENS", "MODEL", "CREATED", "PROMPT")
        print_table(columns, map(row_of, jobs), cut="PROMPT", hide=("CREATED", "MODEL", "TOKENS", "PROMPT"))


def row_of(job: Job) -> tuple[str, ...]:
    """One row of the table."""
    ahead = f", {job.position} ahead" if job.position is not None else ""
    ended = f", {job.finish_reason}" if job.status == "succeeded" else ""
    prompt = prompt_of(job)
    prompt = prompt if len(prompt) <= PROMPT_WIDTH else f"{prompt[: PROMPT_WIDTH - 1]}…"
    return (
        job.id,
        f"{job.status}{ahead}{ended}",
        f"{job.tokens}/{job.max_tokens}",
        job.model,
        f"{job.created_at.astimezone():%Y-%m-%d %H:%M:%S}",
        # A prompt may contain newlines and control characters.
        repr(prompt)[1:-1],
    )


def prompt_of(job: Job) -> str:
    """What the job continues or answers: its prompt, the last message, or the token ids."""
    if job.messages:
        return job.messages[-1]["content"]
    if job.prompt_token_ids is not None:
        return str(list(job.prompt_token_ids[:PROMPT_WIDTH]))
    return job.prompt
