"""Celery's own ways to stop a task, turned into ours."""

from __future__ import annotations

from typing import Any

from celery.utils.functional import maybe_list
from celery.worker.control import Panel, ok
from celery.worker.request import Request

from worker.transport import current


class GenerationRequest(Request):
    """One delivered message. The threads pool cannot stop a task; the engine can stop a sequence."""

    def terminate(self, pool: Any, signal: Any = None) -> None:
        """`revoke(terminate=True)`: cancel the job, which ends the task body."""
        current.require().cancel(self.id)

    def cancel(self, pool: Any, signal: Any = None, emit_retry: bool = True) -> None:
        """Connection lost or cold shutdown: nothing. The job goes on, or the drain hands it back."""


def revoke(state: Any, task_id: Any, terminate: bool = False, signal: Any = None, **_: Any) -> dict[str, str]:
    """Celery's `revoke` on job ids, waiting or running, with or without terminate: cancel them."""
    job_ids = sorted(set(maybe_list(task_id) or []))
    for job_id in job_ids:
        current.require().cancel(job_id)
    reply: dict[str, str] = ok(f"cancelled {', '.join(job_ids)}")
    return reply


def terminate(state: Any, signal: Any, task_id: Any, **_: Any) -> dict[str, str]:
    """Celery's `terminate` on job ids: cancel them."""
    return revoke(state, task_id)


def install_revoke() -> None:
    """Replace Celery's control commands, which would only drop the message and leave the job waiting for ever."""
    Panel.register(revoke, name="revoke", type="control", variadic="task_id", signature="[id1 [id2 [... [idN]]]]")
    Panel.register(
        terminate,
        name="terminate",
        type="control",
        variadic="task_id",
        args=[("signal", str)],
        signature="<signal> [id1 [id2 [... [idN]]]]",
    )
