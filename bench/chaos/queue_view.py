"""Reads the state of the queue directly from Redis: jobs and their progress, records and token logs, and workers."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import redis.asyncio
from redis.exceptions import RedisError

from tasks.job import Job, Status
from tasks.redis_client.connections import make_async
from tasks.settings import Settings
from tasks.store import keys
from tasks.store.job_store import JobStore
from tasks.token_log import TokenLog
from tasks.worker_info import WorkerInfo

#: Pause before a call is retried while Redis is away, in seconds.
RETRY_S = 0.05

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Progress:
    """Progress of a job."""

    status: Status
    attempt: int
    tokens: int
    #: Name of the worker in its record; None if there is none.
    worker: str | None


class QueueView:
    """A connection to Redis. Its calls are retried while Redis is away."""

    def __init__(self, redis_url: str) -> None:
        settings = Settings(redis_url=redis_url, redis_timeout_s=2)
        self._redis: redis.asyncio.Redis = make_async(settings)
        self._store = JobStore(self._redis, settings)

    async def close(self) -> None:
        """Disconnect."""
        await self._redis.aclose()

    async def _retry(self, call: Callable[[], Awaitable[T]]) -> T:
        """Return the result of `call`, which is retried while Redis is away."""
        while True:
            try:
                return await call()
            except RedisError:
                await asyncio.sleep(RETRY_S)

    async def progress(self, job_ids: Sequence[str]) -> dict[str, Progress]:
        """Return the progress of each job that has a record."""

        async def read() -> list[list[bytes | None]]:
            async with self._redis.pipeline(transaction=False) as pipeline:
                for job_id in job_ids:
                    pipeline.hmget(keys.job(job_id), ["status", "attempt", "tokens", "worker"])
                return list(await pipeline.execute())

        found = {}
        for job_id, (status, attempt, tokens, worker) in zip(job_ids, await self._retry(read), strict=True):
            if status is not None and attempt is not None and tokens is not None:
                name = None if worker is None else worker.decode()
                found[job_id] = Progress(Status(status.decode()), int(attempt), int(tokens), name)
        return found

    async def running(self, checkpoint: str) -> dict[str, Progress]:
        """Return the running jobs of a checkpoint."""
        ids = await self._members(keys.running(checkpoint))
        return {job_id: job for job_id, job in (await self.progress(ids)).items() if job.status is Status.RUNNING}

    async def dispatched(self, checkpoint: str) -> list[str]:
        """Return the ids of jobs whose message was pushed and that no worker has claimed yet."""
        return await self._members(keys.dispatched(checkpoint))

    async def message(self, job_id: str) -> bytes | None:
        """Return the Celery message of an unfinished job."""
        # redis-py's types allow for decoded replies, which this client does not use.
        field: Any = self._redis.hget
        message: bytes | None = await self._retry(lambda: field(keys.job(job_id), "message"))
        return message

    async def push_message(self, checkpoint: str, message: bytes) -> None:
        """Put a message on Celery's list, as the next one."""
        push: Any = self._redis.rpush
        await self._retry(lambda: push(keys.queue(checkpoint), message))

    async def pop_messages(self, checkpoint: str, count: int) -> list[bytes]:
        """Remove the next messages from Celery's list and return them."""
        pop: Any = self._redis.rpop
        messages: list[bytes] | None = await self._retry(lambda: pop(keys.queue(checkpoint), count))
        return messages or []

    async def workers(self) -> dict[int, WorkerInfo]:
        """Return the live workers that take jobs, by process id."""
        return {worker.pid: worker for worker in await self._retry(self._store.workers) if worker.takes_jobs}

    async def job(self, job_id: str) -> Job | None:
        """Return a job's record; None if it has none."""
        return await self._retry(lambda: self._store.get(job_id))

    async def log(self, job_id: str) -> TokenLog:
        """Return a job's token log."""
        return TokenLog(tuple(await self._retry(lambda: self._store.log(job_id))))

    async def job_ids(self) -> list[str]:
        """Return the ids of all jobs in Redis."""
        return await self._members(keys.JOBS)

    async def _members(self, key: str) -> list[str]:
        raw: Any = await self._retry(lambda: self._redis.zrange(key, 0, -1))
        return [member.decode() for member in raw]
