"""Celery's control commands that would break a promise of this worker. They are refused, with what to do instead.

Each one takes the place of Celery's command of that name. `task_request` has the two that cancel jobs. The commands
that only read, and those that turn events on and off, are Celery's own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import structlog
from celery.worker.control import Panel, control_command, inspect_command, nok, ok

from worker.transport.shutdown import stop

log = structlog.get_logger(__name__)

_SLOTS = "the number of slots is fixed when a worker starts: set CELERIAC_SLOTS and start it again"
_QUEUES = "a worker always takes the jobs of its own checkpoint and no others"

#: The commands that are refused, and why.
REFUSED = {
    "rate_limit": "jobs would wait in the worker while others are free: limit the clients, or use CELERIAC_SLOTS",
    "time_limit": "a thread cannot be ended: use a job's run_timeout_s or deadline_s",
    "add_consumer": f"{_QUEUES}: start a worker for the other checkpoint",
    "cancel_consumer": f"{_QUEUES}: to take it out of service, stop it (`celery control shutdown` or SIGTERM)",
    "pool_grow": _SLOTS,
    "pool_shrink": _SLOTS,
    "autoscale": _SLOTS,
    "pool_restart": "start the worker again instead",
    "revoke_by_stamped_headers": "jobs have no stamps: revoke them by their ids",
}


def _refuse(name: str, reason: str) -> Callable[..., dict[str, str]]:
    """A command that does nothing and replies with an error."""

    def command(state: Any, **_: Any) -> dict[str, str]:
        log.warning("control_command_refused", command=name)
        reply: dict[str, str] = nok(f"{name} is refused: {reason}")
        return reply

    command.__doc__ = f"Refused: {reason}."
    return command


def replace_commands() -> None:
    """Make the commands of `REFUSED` do nothing. `shutdown` and `hello` were replaced when this module was imported."""
    for name, reason in REFUSED.items():
        # The arguments stay Celery's, so that `celery control` accepts them.
        known = Panel.meta[name]
        control_command(
            name=name, args=known.args, signature=known.signature, variadic=known.variadic, visible=known.visible
        )(_refuse(name, reason))


@control_command(name="shutdown")  # type: ignore[untyped-decorator]
def shutdown(state: Any, **_: Any) -> dict[str, str]:
    """Stop the worker as SIGTERM does: its jobs go back to the queue."""
    log.info("shutdown_requested")
    stop()
    reply: dict[str, str] = ok("the worker stops")
    return reply


@inspect_command(name="hello", visible=False)  # type: ignore[untyped-decorator]
def hello(state: Any, from_node: str, revoked: Any = None, **_: Any) -> dict[str, Any] | None:
    """Answer another node that starts. Its list of revoked tasks is ignored: a job's record says what is cancelled."""
    if from_node == state.hostname:
        return None
    return {"revoked": [], "clock": state.app.clock.forward()}
