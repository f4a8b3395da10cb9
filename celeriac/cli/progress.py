"""How far a job is: one live line on a terminal, a line for each new state elsewhere. All of it on stderr."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from celeriac.client import InferenceClient, Job


def follow(client: InferenceClient, job: Job) -> Job:
    """Show a job until it is over, and return it then."""
    if job.done:
        return job
    return _live(client, job) if sys.stderr.isatty() else _plain(client, job)


def _plain(client: InferenceClient, job: Job) -> Job:
    last_state = ""
    for current in client.watch(job):
        job = current
        if (state := state_of(job)) != last_state:
            click.echo(f"{job.id} {state}", err=True)
            last_state = state
    return job


def _live(client: InferenceClient, job: Job) -> Job:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        TextColumn("{task.completed}/{task.total} tokens"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        line = progress.add_task(state_of(job), total=job.max_tokens, completed=job.tokens)
        for current in client.watch(job):
            job = current
            progress.update(line, description=state_of(job), completed=job.tokens)
    return job


def state_of(job: Job) -> str:
    """A job's state in a few words."""
    match job.status:
        case "queued" if job.position is not None:
            return f"queued, {job.position} ahead"
        case "running" if job.worker is not None:
            return f"running on {job.worker}"
        case status:
            return status
