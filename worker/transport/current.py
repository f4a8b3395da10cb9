"""The service of this worker process, for Celery's task body and control commands, which are plain functions."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from worker.service import WorkerService

#: Set by the bootstep when the checkpoint is loaded.
service: WorkerService | None = None


def require() -> WorkerService:
    """The service. Raises RuntimeError in a process that is not a worker."""
    if service is None:
        raise RuntimeError("this process runs no worker; start one with `celeriac worker --checkpoint NAME`")
    return service
