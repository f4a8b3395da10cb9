"""A job in the shell: its text on stdout as it is decoded, its states on stderr."""

from __future__ import annotations

from typing import TYPE_CHECKING

from celeriac.cli.screen import Screen

if TYPE_CHECKING:
    from celeriac.client import Event, InferenceClient, Job


def follow(client: InferenceClient, job: Job, *, text: bool) -> Job:
    """Show a job until it is over, and return it then. `text`: with its text."""
    from celeriac.client import DoneEvent, QueueEvent, TokenEvent

    screen = Screen(job, text=text)
    with screen:
        if job.done:
            screen.rest(job)
            return job
        if job.status == "queued":
            screen.waits(job.position, place_of(job.position, job.eta_start_s))
        else:
            screen.state(running_on(job.worker))
        for event in client.stream(job):
            match event:
                case TokenEvent():
                    screen.text(event.text)
                case QueueEvent():
                    screen.waits(event.position, place_of(event.position, event.eta_start_s))
                case DoneEvent():
                    job = event.job
                    screen.rest(job)
                case _ if news := news_of(event, job):
                    screen.state(news)
    screen.state(job.status)
    return job


def place_of(position: int | None, eta_start_s: float | None) -> str:
    """Where a job stands in the queue."""
    ahead = "" if position is None else f", {position} ahead"
    # Below a second there is nothing to wait for.
    start = "" if eta_start_s is None or eta_start_s < 1 else f", starts in about {duration(eta_start_s)}"
    return f"queued{ahead}{start}"


def running_on(worker: str | None) -> str:
    """Who runs a job."""
    return "running" if worker is None else f"running on {worker}"


def news_of(event: Event, job: Job) -> str | None:
    """What an event tells that is neither text nor a place in the queue; None: nothing that people need.

    `job`: as it was read before the events.
    """
    from celeriac.client import AttemptEvent, ReconnectEvent, StatusEvent

    match event:
        case StatusEvent(status="running"):
            return running_on(event.worker or (job.worker if event.attempt == job.attempt else None))
        case StatusEvent(status="queued") if event.attempt > 0:
            return "queued again: its worker stopped or was lost"
        case AttemptEvent() if event.attempt > 1:
            worker = "" if event.worker is None else f" by {event.worker}"
            token = f", resumed from token {event.resumed_from}" if event.resumed_from else ""
            return f"taken up again{worker}{token}"
        case ReconnectEvent():
            return f"reconnecting in {duration(event.pause_s)}: {event.reason}"
    return None


def duration(seconds: float) -> str:
    """Some time, roughly."""
    return f"{seconds / 60:.0f} min" if seconds >= 100 else f"{seconds:.0f} s"
