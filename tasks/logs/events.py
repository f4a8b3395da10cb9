"""Log events as people read them: one short line each, or none for what only machines need."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from tasks.logs.printable import printable, printable_block

#: Events that people do not see, unless the level of the log is `debug`: the line at a job's end is enough for them.
_FOR_MACHINES = frozenset(
    {
        "cancel_received",
        "checkpoint_loaded",
        "checkpoint_unloaded",
        "checkpoint_wanted",
        "claim_refused",
        "job_skipped",
        "job_started",
        "retiring",
        "subscriptions_connected",
    }
)
#: Events that people do not see under `celeriac serve`, which says the same for all processes.
_SAID_BY_SERVE = frozenset({"draining", "listening", "stopping"})
#: Loggers of libraries whose messages below a warning people do not see.
_LIBRARIES = ("celery", "kombu", "uvicorn", "watchfiles")
#: How the name of an event ends that tells the progress of loading.
LOADING = "loading_progress"
#: Fields that are not shown as `name=value`.
_ELSEWHERE = frozenset({"event", "level", "logger", "timestamp", "exception", "stack", "request_id", "process"})
_BLOCKS = ("exception", "stack")
#: Widths of a bar and of a job's id, in characters.
_BAR = 20


def made(event: str, *, level: str = "info", **fields: object) -> Mapping[str, Any]:
    """An event of now."""
    return {"event": event, **fields, "level": level, "timestamp": datetime.now(UTC).isoformat().replace("+00:00", "Z")}


def is_for_people(event: Mapping[str, Any], *, together: bool) -> bool:
    """Whether people see this event. `together`: whether they see the events of all processes in one place."""
    if event.get("level") in ("warning", "error", "critical"):
        return True
    name = event.get("event")
    if name in _FOR_MACHINES or (together and name in _SAID_BY_SERVE):
        return False
    if together and name == "request":
        # The line of the worker at the end of its job is enough.
        status = event.get("status")
        return not isinstance(status, int) or status >= 400
    logger = str(event.get("logger", ""))
    return not logger.startswith(_LIBRARIES)


def clock(event: Mapping[str, Any]) -> str:
    """The local time of an event, such as 17:04:59; of now, if it has none that can be read."""
    try:
        at = datetime.fromisoformat(str(event["timestamp"]))
    except (KeyError, ValueError):
        at = datetime.now()
    return at.astimezone().strftime("%H:%M:%S")


def sentence(event: Mapping[str, Any]) -> str:
    """The event in one line, without time and level."""
    name = str(event.get("event", ""))
    words = _SENTENCES.get(name)
    if words is not None:
        try:
            return printable(words(event))
        except (KeyError, TypeError, ValueError):
            # A process of another version may write the event with other fields.
            pass
    fields = [
        f"{printable(key)}={printable(str(value))}"
        for key, value in event.items()
        if key not in _ELSEWHERE and value is not None
    ]
    return " ".join((printable(name, limit=2000), *fields))


def blocks(event: Mapping[str, Any]) -> str:
    """Tracebacks of the event, below its line; empty if there are none."""
    return "".join(printable_block(str(event[name])) for name in _BLOCKS if event.get(name))


def loading_bar(event: Mapping[str, Any]) -> str:
    """The progress of loading: a bar with bytes and seconds."""
    done, total = int(event["loaded_bytes"]), int(event["total_bytes"])
    share = done / total if total else 1.0
    filled = round(share * _BAR)
    return f"loading [{'#' * filled}{'.' * (_BAR - filled)}] {share:4.0%} {loaded(event)}"


def loaded(event: Mapping[str, Any]) -> str:
    """How much is loaded, and since when."""
    done, total = int(event["loaded_bytes"]), int(event["total_bytes"])
    return f"{_size(done)} of {_size(total)}, {float(event['elapsed_s']):.0f} s"


def _size(size: int) -> str:
    for unit, power in (("GB", 9), ("MB", 6)):
        if size >= 10**power:
            return f"{size / 10**power:.1f} {unit}"
    return f"{size / 1000:.0f} kB"


def _job_finished(event: Mapping[str, Any]) -> str:
    tokens = int(event["tokens"])
    plural = "" if tokens == 1 else "s"
    return f"job {event['job_id']} {event['reason']}: {tokens} token{plural} in {float(event['seconds']):.2f} s"


def _request(event: Mapping[str, Any]) -> str:
    job = f" job {event['job_id']}" if event.get("job_id") else ""
    status = "no answer" if event["status"] is None else event["status"]
    return f"{event['method']} {printable(str(event['path']), limit=100)} {status} in {float(event['ms']):.0f} ms{job}"


def _model_loaded(event: Mapping[str, Any]) -> str:
    return (
        f"loaded {event['checkpoint']} on {event['device']} in {float(event['load_s']):.1f} s: "
        f"{int(event['parameters']):,} parameters, {event['slots']} slots"
    )


_SENTENCES: Mapping[str, Callable[[Mapping[str, Any]], str]] = {
    "job_finished": _job_finished,
    "request": _request,
    "loading": lambda event: f"loading {event['checkpoint']} from {event['path']}",
    LOADING: lambda event: f"loaded {loaded(event)}",
    "model_loaded": _model_loaded,
    "draining": lambda event: f"stopping; running jobs go back to the queue: {int(event['running'])}",
    "checkpoint_found": lambda event: f"offers {event['checkpoint']} from {event['path']}",
    "folder_empty": lambda event: f"no checkpoint in {event['folder']} yet: it is offered when one is written there",
    "checkpoint_removed": lambda event: f"offers {event['checkpoint']} no more: {event['path']} is gone",
    "checkpoint_not_offered": lambda event: f"not offered: {event['reason']}",
    "checkpoint_given_up": lambda event: f"unloading {event['checkpoint']}: {event['reason']}",
    "listening": lambda event: f"listening on {event['host']} port {event['port']}",
}
