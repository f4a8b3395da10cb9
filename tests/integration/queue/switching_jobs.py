"""Jobs for checkpoints that are offered, and the children that run them."""

from __future__ import annotations

from typing import Any

from tasks.store import keys
from tasks.worker_info import WorkerInfo
from tests.helpers.switching_worker import named
from tests.integration.conftest import CARD, QueueWorld


async def submit(queue: QueueWorld, name: str, **changes: Any) -> str:
    return await queue.submit(checkpoint=name, digest=named(CARD, name).digest, **changes)


def register(queue: QueueWorld, checkpoint: str, **changes: Any) -> WorkerInfo:
    """Let the child for a checkpoint register."""
    return queue.register(card=named(CARD, checkpoint), **{"name": f"{checkpoint}-child@host", **changes})


async def run_on(queue: QueueWorld, worker: WorkerInfo) -> str:
    """A job that the worker runs."""
    job_id = await submit(queue, worker.checkpoint)
    queue.redis.lrem(keys.queue(worker.checkpoint), 0, queue.redis.hget(keys.job(job_id), "message"))
    queue.claim(job_id, worker)
    return job_id
