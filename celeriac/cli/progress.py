"""Streams a job to the shell: its text as it is decoded, and its states in words."""

from __future__ import annotations

from typing import TYPE_CHECKING

from celeriac.cli.job_printer import JobPrinter

if TYPE_CHECKING:
    from celeriac.client import Event, InferenceClient, Job


def stream_job(client: InferenceClient, job: Job, *, text: bool) -> Job:
    """Print a job's progress until it has ended, and return the ended job. `text`: whether to print its text, too."""
    from celeriac.client import DoneEvent, QueueEvent, TokenEvent

    printer = JobPrinter(job, text=text)
    with printer:
        if job.done:
            printer.print_whole_text(job)
            return job
        if job.status == "queued":
            printer.print_position(job.position, queued(job.position, job.eta_start_s))
        else:
            printer.print_state(running(job.worker))
        for event in client.stream(job):
            match event:
                case TokenEvent():
                    printer.print_text(event.text)
                case QueueEvent():
                    printer.print_position(event.position, queued(event.position, event.eta_start_s))
                case DoneEvent():
                    job = event.job
                    printer.print_whole_text(job)
                case _ if state := state_of(event, job):
                    printer.print_state(state)
    printer.print_state(job.status)
    return job


def queued(position: int | None, eta_start_s: float | None) -> str:
    """The state of a queued job, with its position and the estimated time until its start, in seconds."""
    ahead = "" if position is None else f", {position} ahead"
    # An estimate below one second is not worth a message.
    start = "" if eta_start_s is None or eta_start_s < 1 else f", starts in about {duration(eta_start_s)}"
    return f"queued{ahead}{start}"


def running(worker: str | None) -> str:
    """The state of a running job, with its worker if that is known."""
    return "running" if worker is None else f"running on {worker}"


def state_of(event: Event, job: Job) -> str | None:
    """The state that an event reports; None if there is nothing to print. `job`: as it was before the events."""
    from celeriac.client import AttemptEvent, ReconnectEvent, StatusEvent

    match event:
        case StatusEvent(status="running"):
            return running(event.worker or (job.worker if event.attempt == job.attempt else None))
        case StatusEvent(status="queued") if event.attempt > 0:
            return "queued again: its worker stopped or was lost"
        case AttemptEvent() if event.attempt > 1:
            worker = "" if event.worker is None else f" by {event.worker}"
            token = f", resumed from token {event.resumed_from}" if event.resumed_from else ""
            return f"claimed again{worker}{token}"
        case ReconnectEvent():
            return f"reconnecting in {duration(event.pause_s)}: {event.reason}"
    return None


def duration(seconds: float) -> str:
    """A rounded duration in seconds or minutes."""
    return f"{seconds / 60:.0f} min" if seconds >= 100 else f"{seconds:.0f} s"
