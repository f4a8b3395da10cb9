"""The front end's side of the queue: submit, read, stream, list, cancel and delete jobs; list workers and cards.

Every method may raise redis.exceptions.RedisError: Redis is away, or it refuses to write.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import redis.asyncio

from tasks.card import Card
from tasks.celery_app import make_app
from tasks.errors import IdempotencyMismatchError, QueueFullError, QueueMemoryError, QueuePositionError
from tasks.estimate import QueueLoad
from tasks.generation import Generation
from tasks.job import Job, Status, TimeLimits
from tasks.message import Renderer
from tasks.settings import Settings
from tasks.store import keys, reaped, schema, scripts
from tasks.store.reaped import Reaped
from tasks.token_log import Entry, from_reply
from tasks.worker_info import WorkerInfo


@dataclass(frozen=True, slots=True)
class Idempotency:
    """Identifies a request that may be sent more than once. Neither part contains a space."""

    #: Hash of the owner, the route and the caller's key.
    key_hash: str
    #: Hash of the validated request.
    fingerprint: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NewJob:
    """A validated request for a job."""

    #: From `tasks.job_id.new_job_id`.
    id: str
    owner: str
    checkpoint: str
    #: Digest of the card that the request was validated against.
    digest: str
    generation: Generation
    #: 0 (served first) to 9.
    priority: int = 5
    metadata: Mapping[str, str] = field(default_factory=dict)
    limits: TimeLimits = field(default_factory=TimeLimits)
    #: Largest number of jobs that may be ahead of this one; None for no limit.
    max_position: int | None = None
    #: Id of the job that this one repeats.
    retry_of: str | None = None
    #: Predicted duration from submission to end, in seconds; None if there is no prediction. The real duration is
    #: compared with it.
    predicted_s: float | None = None
    idempotency: Idempotency | None = None
    #: How long the finished job is kept, in seconds; None for the setting `result_ttl_s`.
    result_ttl_s: float | None = None
    #: Channel that receives the job's id when the job ends; None if no caller waits for the end.
    reply_to: str | None = None
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Submitted:
    """An accepted job."""

    job_id: str
    #: Whether an earlier request with the same key created the job. Its record may have expired since.
    replayed: bool


@dataclass(frozen=True, slots=True)
class JobVersion:
    """Whether a job has changed, and its position. Cheap to read for many jobs at once."""

    #: Increases with every change.
    version: int
    #: Number of jobs ahead; None if the job does not wait.
    position: int | None


@dataclass(frozen=True, slots=True)
class JobChanges:
    """The changes of a job since a cursor, for an event stream."""

    status: Status
    attempt: int
    worker: str | None
    #: Number of jobs ahead; None if the job does not wait.
    position: int | None
    #: Entries of the log after the cursor. If the cursor is inside an entry, that entry is cut.
    entries: tuple[Entry, ...]
    #: The whole job if it has ended, else None.
    ended: Job | None = None
    #: If the job has ended, an entry id after that of the last entry.
    end_id: str = ""


@dataclass(frozen=True, slots=True)
class Page:
    """A part of a listing, newest first."""

    jobs: tuple[Job, ...]
    #: Cursor for the next page; None if this is the last one.
    next_cursor: str | None


@dataclass(frozen=True, slots=True)
class WorkerCounts:
    """The live workers of a checkpoint, counted by what they do. A worker that drains is not counted."""

    checkpoint: str
    #: Workers that take jobs.
    serving: int
    #: Their slots together.
    slots: int
    #: Running jobs of the checkpoint.
    running: int
    #: Workers that replace a crashed engine: they have proved that they serve the weights of the card.
    reloading: int = 0
    #: Workers that load the checkpoint for the first time.
    starting: int = 0
    #: Workers whose consumer does not look for messages.
    stalled: int = 0


# Aliases, because `list` is a method inside the class.
Counts = list[WorkerCounts]
Entries = list[Entry]
Workers = list[WorkerInfo]


class JobStore:
    """The queue in Redis, for asyncio. One instance per process."""

    def __init__(self, client: redis.asyncio.Redis, settings: Settings) -> None:
        self._redis = client
        self._settings = settings
        self._reap_arguments = reaped.arguments(settings)
        self._renderer = Renderer(make_app(settings))

    async def check_schema(self) -> bool:
        """Mark an empty Redis with the layout's version, and return whether it was empty.

        Raises SchemaError if Redis holds keys in another layout.
        """
        return schema.check_reply(await scripts.get("schema").acall(self._redis, keys.SCHEMA_VERSION))

    async def submit(self, new: NewJob) -> Submitted:
        """Accept a job in one atomic call.

        Raises QueueFullError, QueuePositionError, QueueMemoryError and IdempotencyMismatchError.
        """
        ttl_ms = scripts.ms(self._settings.result_ttl_s if new.result_ttl_s is None else new.result_ttl_s)
        record: dict[str, scripts.Argument] = {
            "owner": new.owner,
            "digest": new.digest,
            "input": new.generation.to_json(),
            "metadata": json.dumps(dict(new.metadata)),
            "warnings": json.dumps(new.warnings),
            "result_ttl_ms": ttl_ms,
            "message": self._renderer.render(new.id, keys.queue(new.checkpoint)),
            "max_tokens": new.generation.sampling.max_tokens,
            **{name: ms for name, ms in asdict(new.limits).items() if ms is not None},
        }
        if new.retry_of is not None:
            record["retry_of"] = new.retry_of
        if new.reply_to is not None:
            record["reply_to"] = new.reply_to
        if new.predicted_s is not None:
            record["predicted_ms"] = max(1, scripts.ms(new.predicted_s))
        if new.idempotency is not None:
            # The time counts from the job's end: the key of a live job does not expire.
            record["idempotency"] = new.idempotency.key_hash
            record["idempotency_ttl_ms"] = max(ttl_ms, scripts.ms(self._settings.idempotency_ttl_s))
        outcome, *rest = await scripts.get("submit").acall(
            self._redis,
            new.id,
            new.checkpoint,
            new.priority,
            self._settings.max_queued_jobs,
            "" if new.max_position is None else new.max_position,
            new.idempotency.key_hash if new.idempotency else "",
            new.idempotency.fingerprint if new.idempotency else "",
            *(part for field in record.items() for part in field),
        )
        if outcome == b"full":
            raise QueueFullError(self._settings.max_queued_jobs)
        if outcome == b"far":
            raise QueuePositionError(rest[0], new.max_position or 0)
        if outcome == b"memory":
            raise QueueMemoryError(None if rest[0] < 0 else rest[0] / 1000)
        job_id = rest[0].decode()
        if outcome == b"mismatch":
            raise IdempotencyMismatchError(job_id)
        return Submitted(job_id, replayed=outcome == b"replayed")

    async def find(self, key: Idempotency) -> str | None:
        """The id of the job that an earlier request with this key created. Raises IdempotencyMismatchError."""
        known: Any = await self._redis.get(keys.idempotency(key.key_hash))
        if known is None:
            return None
        job_id, fingerprint = known.decode().split(" ")
        if fingerprint != key.fingerprint:
            raise IdempotencyMismatchError(job_id)
        return str(job_id)

    async def get(self, job_id: str) -> Job | None:
        """The job, with its position if it waits; None if there is no such job."""
        return _job(await scripts.get("view").acall(self._redis, job_id))

    async def versions(self, job_ids: Sequence[str]) -> Sequence[JobVersion | None]:
        """The version and the position of each job, in one call; None for a job that does not exist."""
        found = await scripts.get("versions").acall(self._redis, *job_ids)
        return [None if of_job is None else JobVersion(of_job[0], _position(of_job[1])) for of_job in found]

    async def changes(self, job_id: str, after: int = 0, k: int = 0) -> JobChanges | None:
        """The changes of a job since the cursor `<after>-<k>`, in one call; None if there is no such job."""
        reply = await scripts.get("changes").acall(self._redis, job_id, f"{after}-{k}")
        if reply is None:
            return None
        status, attempt, worker, ahead, entries, *end = reply
        return JobChanges(
            status=Status(status.decode()),
            attempt=attempt,
            worker=worker.decode() or None,
            position=_position(ahead),
            entries=tuple(entry.cut(after) for entry in from_reply(entries)),
            ended=_job([end[1], -1]) if end else None,
            end_id=end[0].decode() if end else "",
        )

    async def delete(self, job_id: str) -> bool:
        """Delete a job in any state, with its prompt and its text. False if there is no such job."""
        keep_id_ms = scripts.ms(self._settings.result_ttl_s)
        return bool(await scripts.get("delete").acall(self._redis, job_id, keep_id_ms))

    async def was_deleted(self, job_id: str) -> bool:
        """Whether a job that does not exist was deleted recently."""
        return bool(await self._redis.exists(keys.deleted(job_id)))

    async def queue_load(self, checkpoint: str) -> QueueLoad:
        """The load of a checkpoint's queue, from which waiting times are estimated."""
        waiting, waiting_tokens, running, slots, *pace, accuracy = await scripts.get("queue_load").acall(
            self._redis, checkpoint
        )
        first_token_ms, ms_per_token, share = (float(value) if value else None for value in pace)
        return QueueLoad(
            waiting=waiting,
            waiting_tokens=waiting_tokens,
            running=running,
            slots=slots,
            first_token_s=None if first_token_ms is None else first_token_ms / 1000,
            s_per_token=0.0 if ms_per_token is None else ms_per_token / 1000,
            share=1.0 if share is None else share,
            accuracy=tuple(float(ratio) for ratio in accuracy),
        )

    async def cancel(self, job_id: str) -> Job | None:
        """Cancel a job and return it; None if there is no such job.

        A waiting job ends at once. The worker of a running job is asked to stop it.
        """
        return _job(await scripts.get("cancel").acall(self._redis, job_id))

    async def log(self, job_id: str, after: int = 0, k: int = 0) -> Entries:
        """The entries of the log after the cursor `<after>-<k>`. If the cursor is inside an entry, that entry is cut.

        With k = 0 the result includes entries without tokens (an attempt mark, a last piece of text) at `after`.
        """
        # redis-py's types also allow decoded replies, which our clients do not use.
        raw: Any = await self._redis.xrange(keys.tokens(job_id), min=f"({after}-{k}")
        return [Entry.decode(entry).cut(after) for entry in raw]

    async def list(
        self, *, status: Status | None = None, owner: str | None = None, cursor: str | None = None, limit: int = 20
    ) -> Page:
        """One page of jobs, newest first: at most `limit`, and fewer if their texts are long.

        Raises ValueError if `cursor` is not the `next_cursor` of a page.
        """
        last_at, last_id = _parse_cursor(cursor)
        views, next_at, next_id = await scripts.get("list").acall(
            self._redis, status or "", owner or "", limit, last_at, last_id
        )
        jobs = tuple(job for view in views if (job := _job(view)) is not None)
        return Page(jobs, f"{next_at.decode()}.{next_id.decode()}" if next_id else None)

    async def card(self, checkpoint: str) -> Card | None:
        """The card of a checkpoint, also if no worker serves it now; None if no worker ever did."""
        text = await self._redis.hget(keys.card(checkpoint), "card")
        return None if text is None else Card.from_json(text)

    async def cards(self) -> dict[str, Card]:
        """All cards, by the name of the checkpoint."""
        names = await self._checkpoints()
        async with self._redis.pipeline(transaction=False) as pipeline:
            for name in names:
                pipeline.hget(keys.card(name), "card")
            texts = await pipeline.execute()
        return {name: Card.from_json(text) for name, text in zip(names, texts, strict=True) if text is not None}

    async def worker_counts(self) -> Counts:
        """The counts of each checkpoint that has a live worker, in order of their names.

        The cost does not depend on how many workers there are.
        """
        found = await scripts.get("worker_counts").acall(self._redis)
        return [WorkerCounts(name.decode(), *counts) for name, *counts in sorted(found)]

    async def workers(self, checkpoint: str | None = None) -> Workers:
        """The live workers of one checkpoint, or of all, in order of their names."""
        served = await self._checkpoints() if checkpoint is None else [checkpoint]
        async with self._redis.pipeline(transaction=False) as pipeline:
            for name in served:
                pipeline.zrange(keys.workers(name), 0, -1)
            names = sorted({name.decode() for found in await pipeline.execute() for name in found})
            for name in names:
                pipeline.hgetall(keys.worker(name))
            hashes = await pipeline.execute()
        # The hash of a worker that is gone expires.
        found = [WorkerInfo.from_hash(fields) for fields in hashes if fields]
        return [worker for worker in found if worker.checkpoint in served]

    async def reap(self) -> Reaped:
        """Run the reaper, unless another process has just run it. Every process calls it each second."""
        return Reaped.from_reply(await scripts.get("reap").acall(self._redis, *self._reap_arguments))

    async def _checkpoints(self) -> Sequence[str]:
        names: Any = await self._redis.smembers(keys.CHECKPOINTS)
        return sorted(name.decode() for name in names)


def _job(view: Sequence[Any] | None) -> Job | None:
    """The job in the reply of `view.lua`."""
    if view is None:
        return None
    flat, ahead = view
    return Job.from_hash(dict(zip(flat[::2], flat[1::2], strict=True)), _position(ahead))


def _position(ahead: int) -> int | None:
    """The position in a script's reply."""
    return None if ahead < 0 else ahead


def _parse_cursor(cursor: str | None) -> tuple[str, str]:
    if cursor is None:
        return "", ""
    at, _, job_id = cursor.partition(".")
    if not (at.isascii() and at.isdigit() and job_id):
        raise ValueError("not a cursor of this listing")
    return at, job_id
