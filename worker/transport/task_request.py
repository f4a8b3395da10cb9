"""Celery's own ways to stop a task. Here they cancel the job, whether it waits in the queue or runs in the engine."""

from __future__ import annotations

from typing import Any

from celery.utils.functional import maybe_list
from celery.worker.control import control_command, ok
from celery.worker.request import Request

from worker.transport import current


class GenerationRequest(Request):
    """One delivered message. Celery's thread pool cannot stop a task, but the engine can stop a sequence."""

    def send_event(self, type: str, **fields: Any) -> None:
        """Send an event to Flower and other listeners, with the queue of the message and without a traceback."""
        queue = self.delivery_info["routing_key"]
        if "traceback" in fields:
            # A failed job is no error of the worker: the job's record has its error.
            fields["traceback"] = None
        super().send_event(type, queue=queue, routing_key=queue, **fields)

    def terminate(self, pool: Any, signal: Any = None) -> None:
        """`revoke(terminate=True)`: cancel the job, which ends the task body."""
        current.require().cancel(self.id)

    def revoked(self) -> bool:
        """Whether Celery skips the message: never. The claim reads in the job's record whether it is cancelled."""
        return False

    def cancel(self, pool: Any, signal: Any = None, emit_retry: bool = True) -> None:
        """Do nothing when the connection is lost or on a cold shutdown: the job continues, or the drain releases it."""


# The two commands below take the place of Celery's own, whose names they have. Celery's `revoke` makes workers skip the
# message and does not change the job, which would then wait forever.


@control_command(name="revoke", variadic="task_id", signature="[id1 [id2 [... [idN]]]]")  # type: ignore[untyped-decorator]
def revoke(state: Any, task_id: Any, terminate: bool = False, signal: Any = None, **_: Any) -> dict[str, str]:
    """Cancel jobs, waiting or running, with or without `terminate`."""
    job_ids = sorted(set(maybe_list(task_id) or []))
    for job_id in job_ids:
        current.require().cancel(job_id)
    reply: dict[str, str] = ok(f"cancelled {', '.join(job_ids)}")
    return reply


@control_command(  # type: ignore[untyped-decorator]
    name="terminate", variadic="task_id", args=[("signal", str)], signature="<signal> [id1 [id2 [... [idN]]]]"
)
def terminate(state: Any, signal: Any, task_id: Any, **_: Any) -> dict[str, str]:
    """Cancel jobs, waiting or running. `signal` has no effect."""
    reply: dict[str, str] = revoke(state, task_id)
    return reply
