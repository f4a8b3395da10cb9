"""What the harness sees of the queue, straight from Redis: who runs what, how far jobs are, their records and logs."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import redis.asyncio
from redis.exceptions import RedisError

from tasks.job import Job, Status
from tasks.settings import Settings
from tasks.store import keys
from tasks.store.connections import make_async
from tasks.store.job_store import JobStore
from tasks.token_log import TokenLog
from tasks.worker_info import WorkerInfo

#: Pause before another try while Redis is away, in seconds.
RETRY_S = 0.05

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a job is."""

    status: Status
    attempt: int
    tokens: int
    worker: str | None


class QueueView:
    """Reads again and again while Redis is away."""

    def __init__(self, redis_url: str) -> None:
        settings = Settings(redis_url=redis_url, redis_timeout_s=2)
        self.redis: redis.asyncio.Redis = make_async(settings)
        self._store = JobStore(self.redis, settings)

    async def close(self) -> None:
        """Disconnect."""
        await self.redis.aclose()

    async def patiently(self, read: Callable[[], Awaitable[T]]) -> T:
        """`read`, as soon as Redis is there."""
        while True:
            try:
                return await read()
            except RedisError:
                await asyncio.sleep(RETRY_S)

    async def progress(self, job_ids: Sequence[str]) -> dict[str, Progress]:
        """How far each job is that has a record."""

        async def read() -> list[list[bytes | None]]:
            async with self.redis.pipeline(transaction=False) as pipeline:
                for job_id in job_ids:
                    pipeline.hmget(keys.job(job_id), ["status", "attempt", "tokens", "worker"])
                return list(await pipeline.execute())

        found = {}
        for job_id, (status, attempt, tokens, worker) in zip(job_ids, await self.patiently(read), strict=True):
            if status is not None and attempt is not None and tokens is not None:
                name = None if worker is None else worker.decode()
                found[job_id] = Progress(Status(status.decode()), int(attempt), int(tokens), name)
        return found

    async def running(self, checkpoint: str) -> dict[str, Progress]:
        """The running jobs of a checkpoint."""
        ids = await self._members(keys.running(checkpoint))
        return {job_id: job for job_id, job in (await self.progress(ids)).items() if job.status is Status.RUNNING}

    async def dispatched(self, checkpoint: str) -> list[str]:
        """Ids of the jobs whose message was pushed and that nobody claimed yet."""
        return await self._members(keys.dispatched(checkpoint))

    async def message(self, job_id: str) -> bytes | None:
        """The Celery message of a job that is not over."""
        # redis-py's types leave room for decoded replies, which our clients never ask for.
        field: Any = self.redis.hget
        message: bytes | None = await self.patiently(lambda: field(keys.job(job_id), "message"))
        return message

    async def push_message(self, checkpoint: str, message: bytes) -> None:
        """Put a message on Celery's list, first in line."""
        push: Any = self.redis.rpush
        await self.patiently(lambda: push(keys.queue(checkpoint), message))

    async def pop_messages(self, checkpoint: str, count: int) -> list[bytes]:
        """Take messages from Celery's list, those that are next in line. Nobody has them then."""
        pop: Any = self.redis.rpop
        messages: list[bytes] | None = await self.patiently(lambda: pop(keys.queue(checkpoint), count))
        return messages or []

    async def workers(self) -> dict[int, WorkerInfo]:
        """The live workers by process id."""
        return {worker.pid: worker for worker in await self.patiently(self._store.workers)}

    async def job(self, job_id: str) -> Job | None:
        """A job's record; None where there is none."""
        return await self.patiently(lambda: self._store.get(job_id))

    async def log(self, job_id: str) -> TokenLog:
        """A job's token log."""
        return TokenLog(tuple(await self.patiently(lambda: self._store.log(job_id))))

    async def job_ids(self) -> list[str]:
        """Ids of all jobs that Redis knows."""
        return await self._members(keys.JOBS)

    async def _members(self, key: str) -> list[str]:
        raw: Any = await self.patiently(lambda: self.redis.zrange(key, 0, -1))
        return [member.decode() for member in raw]
