"""A queue without processes: both stores on a real Redis, and helpers for what tests often need."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing, asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import redis
from redis.asyncio import Redis as AsyncRedis

from tasks.card import Card, TokenizerCard
from tasks.generation import FinishReason
from tasks.job import ErrorCode, Job, JobError, Status
from tasks.job_id import new_job_id
from tasks.redis_client.connections import make_async, make_sync
from tasks.settings import Settings
from tasks.store import keys
from tasks.store.job_store import JobStore
from tasks.store.job_writes import AppendTokens, FinishJob, FlushReply
from tasks.store.new_job import NewJob
from tasks.store.worker_store import Claimed, Refused, WorkerStore
from tasks.worker_info import WorkerInfo, WorkerState
from tests.helpers.requests import make_generation
from tests.integration.stack import Stack

CARD = Card(
    name="tiny",
    digest="digest-1",
    step=2920,
    loss=0.5,
    loss_name="val_loss",
    era="E1b",
    n_layer=1,
    n_head=1,
    n_kv_head=1,
    n_embd=8,
    vocab_size=32,
    context=64,
    softcap=15.0,
    parameters=100,
    weight_bytes=400,
    kv_bytes_per_token=64,
    tokenizer=TokenizerCard(kind="characters", text_ids=17, characters="0123456789+-*/=. "),
)
#: The error of jobs that a test ends as failed.
FAILED = JobError(ErrorCode.INTERNAL, "It failed.", retryable=True)
WORKER = WorkerInfo(
    name="tiny-1@host",
    incarnation="first",
    checkpoint="tiny",
    device="cpu",
    slots=2,
    pid=1,
    host="host",
    digest=CARD.digest,
    state=WorkerState.IDLE,
    kv_tokens=1000,
    kv_tokens_free=1000,
)


@dataclass(frozen=True)
class QueueWorld:
    """The stores of both sides, and clients to inspect Redis itself."""

    settings: Settings
    jobs: JobStore
    workers: WorkerStore
    redis: redis.Redis
    asynchronous: AsyncRedis

    def new_job(self, **changes: Any) -> NewJob:
        """A job with ordinary fields, except for `changes`."""
        generation = make_generation(prompt="1+1=", max_tokens=8, temperature=0.0, seed=7)
        job = NewJob(id=new_job_id(), owner="anybody", checkpoint="tiny", digest=CARD.digest, generation=generation)
        return replace(job, **changes)

    async def submit(self, **changes: Any) -> str:
        """Submit a job and return its id."""
        return (await self.jobs.submit(self.new_job(**changes))).job_id

    def register(self, *, card: Card = CARD, **changes: Any) -> WorkerInfo:
        """Register a worker."""
        info = replace(WORKER, digest=card.digest, checkpoint=card.name, **changes)
        self.workers.register(info, card)
        return info

    def try_claim(self, job_id: str, info: WorkerInfo = WORKER) -> Claimed | Refused:
        """Claim a job for a worker. The claim may be refused."""
        return self.workers.claim(
            job_id, worker=info.name, incarnation=info.incarnation, digest=info.digest, prompt_tokens=4
        )

    def claim(self, job_id: str, info: WorkerInfo = WORKER) -> Claimed:
        """Claim a job for a worker. The claim must succeed."""
        claimed = self.try_claim(job_id, info)
        assert isinstance(claimed, Claimed), claimed
        return claimed

    async def running(self, **changes: Any) -> str:
        """Submit a job, claim it, and return its id."""
        job_id = await self.submit(**changes)
        self.claim(job_id)
        return job_id

    def append(self, job_id: str, text: str, *, before: int = 0, attempt: int = 1) -> FlushReply:
        """Append one token for each character of `text`."""
        return self.workers.flush([append(job_id, text, before=before, attempt=attempt)])[0]

    def finish(self, job_id: str, text: str = "", **changes: Any) -> FlushReply:
        """Finish a job, with one more token for each character of `text`."""
        return self.workers.flush([finish(job_id, text, **changes)])[0]

    async def job(self, job_id: str) -> Job:
        """Read a job, which must exist."""
        job = await self.jobs.get(job_id)
        assert job is not None
        return job

    async def expired(self, *names: str) -> None:
        """Wait until keys have expired."""
        async with asyncio.timeout(10):
            while self.redis.exists(*names):  # noqa: ASYNC110 (expired keys send no event)
                await asyncio.sleep(0.005)

    @contextmanager
    def subscribed(self, *channels: str) -> Iterator[Callable[..., tuple[str, str] | None]]:
        """Subscribe to channels. Yields a function that returns channel and data of the next message, or None."""
        with self.redis.pubsub() as pubsub:  # type: ignore[no-untyped-call]
            pubsub.subscribe(*channels)
            for _ in channels:
                assert pubsub.get_message(timeout=5) is not None

            def next_message(timeout_s: float = 5) -> tuple[str, str] | None:
                message = pubsub.get_message(timeout=timeout_s)
                return None if message is None else (message["channel"].decode(), message["data"].decode())

            yield next_message

    def pushed(self, checkpoint: str = "tiny") -> list[str]:
        """Ids of the jobs on Celery's list, in serving order."""
        messages: Any = self.redis.lrange(keys.queue(checkpoint), 0, -1)
        return [json.loads(message)["headers"]["id"] for message in reversed(messages)]

    def tuned(self, **settings: Any) -> QueueWorld:
        """The same queue, used by processes with other settings."""
        tuned = self.settings.model_copy(update=settings)
        jobs, workers = JobStore(self.asynchronous, tuned), WorkerStore(self.redis, tuned)
        return replace(self, settings=tuned, jobs=jobs, workers=workers)


def append(job_id: str, text: str, *, before: int = 0, attempt: int = 1) -> AppendTokens:
    """One token for each character of `text`. The code point of the character is the token id."""
    token_ids, pieces = tuple(map(ord, text)), tuple(text)
    return AppendTokens(job_id=job_id, attempt=attempt, before=before, token_ids=token_ids, pieces=pieces)


def finish(
    job_id: str,
    text: str = "",
    *,
    before: int = 0,
    attempt: int = 1,
    tail: str = "",
    completion: str | None = None,
    status: Status = Status.SUCCEEDED,
    finish_reason: FinishReason = FinishReason.STOP,
    error: JobError | None = None,
    tokens_at_cancel: int | None = None,
) -> FinishJob:
    """The end of a job, with one more token for each character of `text`."""
    return FinishJob(
        tokens=append(job_id, text, before=before, attempt=attempt),
        tail=tail,
        status=status,
        finish_reason=finish_reason,
        completion=text + tail if completion is None else completion,
        error=FAILED if error is None and status is Status.FAILED else error,
        tokens_at_cancel=tokens_at_cancel,
    )


@asynccontextmanager
async def queue_world(redis_url: str) -> AsyncIterator[QueueWorld]:
    """The queue in a Redis, with default settings."""
    settings = Settings(redis_url=redis_url)
    asynchronous = make_async(settings)
    async with aclosing(asynchronous):
        with make_sync(settings) as synchronous:
            jobs, workers = JobStore(asynchronous, settings), WorkerStore(synchronous, settings)
            yield QueueWorld(settings, jobs, workers, synchronous, asynchronous)


@pytest.fixture
async def queue(redis_url: str, anyio_backend: str) -> AsyncIterator[QueueWorld]:
    """An empty queue."""
    async with queue_world(redis_url) as world:
        yield world


@pytest.fixture
def stack(redis_url: str, tmp_path: Path) -> Iterator[Stack]:
    """A stack without processes. Processes that the test starts are stopped after it."""
    stack = Stack(redis_url, tmp_path)
    yield stack
    stack.close()
