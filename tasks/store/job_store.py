"""The front end's side of the queue: accept, read, follow, list, cancel and delete jobs; see who serves what.

Every method may raise redis.exceptions.RedisError where Redis is away or refuses to write.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import redis.asyncio

from tasks.card import Card
from tasks.celery_app import make_app
from tasks.errors import IdempotencyMismatchError, QueueFullError, QueuePositionError
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
    """What makes a repeated request the same request. Neither part holds a space."""

    #: Hash over the owner, the route and the caller's key.
    key_hash: str
    #: Hash over the validated request.
    fingerprint: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NewJob:
    """A validated request."""

    #: From `tasks.job_id.new_job_id`.
    id: str
    owner: str
    checkpoint: str
    #: Digest of the card that the request was validated against.
    digest: str
    generation: Generation
    #: 0 (first) to 9.
    priority: int = 5
    metadata: Mapping[str, str] = field(default_factory=dict)
    limits: TimeLimits = field(default_factory=TimeLimits)
    #: Most jobs that may be ahead of it; None: any number.
    max_position: int | None = None
    #: The job that this one repeats.
    retry_of: str | None = None
    #: How long it should take from submission to end, in seconds, as far as that can be told; it is compared with how
    #: long it took.
    predicted_s: float | None = None
    idempotency: Idempotency | None = None
    #: How long the finished job is kept, in seconds; None for the setting.
    result_ttl_s: float | None = None
    #: Channel on which its id shall be told at its end; None: nobody waits for that alone.
    reply_to: str | None = None
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Submitted:
    """An accepted job."""

    job_id: str
    #: An earlier request with the same key made it. Its record may have expired since.
    replayed: bool


@dataclass(frozen=True, slots=True)
class JobVersion:
    """What many jobs are asked for at once."""

    #: Rises at every change.
    version: int
    #: Jobs ahead of it; None unless it waits.
    position: int | None


@dataclass(frozen=True, slots=True)
class JobChanges:
    """What is new of a job that somebody follows."""

    status: Status
    attempt: int
    worker: str | None
    #: Jobs ahead of it; None unless it waits.
    position: int | None
    #: What the log has behind the cursor; the first entry is cut where the cursor is inside it.
    entries: tuple[Entry, ...]
    #: Once it is over: the whole job, and an id behind that of every entry.
    ended: Job | None = None
    end_id: str = ""


@dataclass(frozen=True, slots=True)
class Page:
    """A part of a listing, the newest first."""

    jobs: tuple[Job, ...]
    #: Where the next page begins; None at the end.
    next_cursor: str | None


# Inside the class, `list` is a method.
Entries = list[Entry]
Workers = list[WorkerInfo]


class JobStore:
    """Jobs in Redis, for asyncio. One for each process."""

    def __init__(self, client: redis.asyncio.Redis, settings: Settings) -> None:
        self._redis = client
        self._settings = settings
        self._reap_arguments = reaped.arguments(settings)
        self._renderer = Renderer(make_app(settings))

    async def check_schema(self) -> bool:
        """Whether Redis was empty; it is marked then. Raises SchemaError where it holds another version's keys."""
        return await schema.acheck(self._redis)

    async def submit(self, new: NewJob) -> Submitted:
        """Accept a job, all of it or nothing, in one call.

        Raises QueueFullError, QueuePositionError and IdempotencyMismatchError.
        """
        ttl_ms = _ms(self._settings.result_ttl_s if new.result_ttl_s is None else new.result_ttl_s)
        record: dict[str, scripts.Argument] = {
            "owner": new.owner,
            "digest": new.digest,
            "input": new.generation.to_json(),
            "metadata": json.dumps(dict(new.metadata)),
            "warnings": json.dumps(new.warnings),
            "result_ttl_ms": ttl_ms,
            "message": self._renderer.render(new.id, new.checkpoint),
            "max_tokens": new.generation.sampling.max_tokens,
            **{name: ms for name, ms in asdict(new.limits).items() if ms is not None},
        }
        if new.retry_of is not None:
            record["retry_of"] = new.retry_of
        if new.reply_to is not None:
            record["reply_to"] = new.reply_to
        if new.predicted_s is not None:
            record["predicted_ms"] = max(1, _ms(new.predicted_s))
        if new.idempotency is not None:
            # Counted from the job's end: as long as the job lives, so does its key.
            record["idempotency"] = new.idempotency.key_hash
            record["idempotency_ttl_ms"] = max(ttl_ms, _ms(self._settings.idempotency_ttl_s))
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
        job_id = rest[0].decode()
        if outcome == b"mismatch":
            raise IdempotencyMismatchError(job_id)
        return Submitted(job_id, replayed=outcome == b"replayed")

    async def find(self, key: Idempotency) -> str | None:
        """Id of the job that an earlier request with this key made. Raises IdempotencyMismatchError."""
        known: Any = await self._redis.get(keys.idempotency(key.key_hash))
        if known is None:
            return None
        job_id, fingerprint = known.decode().split(" ")
        if fingerprint != key.fingerprint:
            raise IdempotencyMismatchError(job_id)
        return str(job_id)

    async def get(self, job_id: str) -> Job | None:
        """The job, with its exact position while it waits; None where there is none (any more)."""
        return _job(await scripts.get("view").acall(self._redis, job_id))

    async def versions(self, job_ids: Sequence[str]) -> Sequence[JobVersion | None]:
        """A look at each job, in one call; None where there is no such job (any more)."""
        seen = await scripts.get("versions").acall(self._redis, *job_ids)
        return [None if of_job is None else JobVersion(of_job[0], _position(of_job[1])) for of_job in seen]

    async def changes(self, job_id: str, after: int = 0, k: int = 0) -> JobChanges | None:
        """What is new of a job behind the cursor `<after>-<k>`, in one call; None where there is no such job."""
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
        """Delete a job, whatever its state, with its prompt and its text. False where there is no such job."""
        remember_ms = _ms(self._settings.result_ttl_s)
        return bool(await scripts.get("delete").acall(self._redis, job_id, remember_ms))

    async def was_deleted(self, job_id: str) -> bool:
        """Whether a job that is not there was deleted, not so long ago."""
        return bool(await self._redis.exists(keys.deleted(job_id)))

    async def queue_load(self, checkpoint: str) -> QueueLoad:
        """What an estimate of the checkpoint's queue goes by."""
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
        """Cancel a job and return it as it is then: one that waited is over, one that runs is asked to stop."""
        return _job(await scripts.get("cancel").acall(self._redis, job_id))

    async def log(self, job_id: str, after: int = 0, k: int = 0) -> Entries:
        """The log behind the cursor `<after>-<k>`; the first entry is cut where the cursor is inside it.

        With k = 0 it includes what stands between token `after` and the next (an attempt mark, a last piece of text).
        """
        # redis-py's types leave room for decoded replies, which our clients never ask for.
        raw: Any = await self._redis.xrange(keys.tokens(job_id), min=f"({after}-{k}")
        return [Entry.decode(entry).cut(after) for entry in raw]

    async def list(
        self, *, status: Status | None = None, owner: str | None = None, cursor: str | None = None, limit: int = 20
    ) -> Page:
        """Jobs, the newest first. `cursor` is a page's `next_cursor`; raises ValueError where it is not."""
        last_at, last_id = _parse_cursor(cursor)
        views, next_at, next_id = await scripts.get("list").acall(
            self._redis, status or "", owner or "", limit, last_at, last_id
        )
        jobs = tuple(job for view in views if (job := _job(view)) is not None)
        return Page(jobs, f"{next_at.decode()}.{next_id.decode()}" if next_id else None)

    async def card(self, checkpoint: str) -> Card | None:
        """The card of a checkpoint, whether or not a worker serves it now; None where none ever did."""
        text = await self._redis.hget(keys.card(checkpoint), "card")
        return None if text is None else Card.from_json(text)

    async def cards(self) -> dict[str, Card]:
        """Every card by its checkpoint's name."""
        names = await self._checkpoints()
        async with self._redis.pipeline(transaction=False) as pipeline:
            for name in names:
                pipeline.hget(keys.card(name), "card")
            texts = await pipeline.execute()
        return {name: Card.from_json(text) for name, text in zip(names, texts, strict=True) if text is not None}

    async def workers(self, checkpoint: str | None = None) -> Workers:
        """The live workers, of one checkpoint or of all, by name."""
        served = await self._checkpoints() if checkpoint is None else [checkpoint]
        async with self._redis.pipeline(transaction=False) as pipeline:
            for name in served:
                pipeline.zrange(keys.workers(name), 0, -1)
            names = sorted({name.decode() for found in await pipeline.execute() for name in found})
            for name in names:
                pipeline.hgetall(keys.worker(name))
            hashes = await pipeline.execute()
        # The hash of a worker that is gone has expired.
        found = [WorkerInfo.from_hash(fields) for fields in hashes if fields]
        return [worker for worker in found if worker.checkpoint in served]

    async def reap(self) -> Reaped:
        """Bring back what got lost, unless somebody has just done so. Every process calls it each second."""
        return Reaped.from_reply(await scripts.get("reap").acall(self._redis, *self._reap_arguments))

    async def _checkpoints(self) -> Sequence[str]:
        names: Any = await self._redis.smembers(keys.CHECKPOINTS)
        return sorted(name.decode() for name in names)


def _ms(seconds: float) -> int:
    return round(seconds * 1000)


def _job(view: Sequence[Any] | None) -> Job | None:
    """The job in the reply of `view.lua`."""
    if view is None:
        return None
    flat, ahead = view
    return Job.from_hash(dict(zip(flat[::2], flat[1::2], strict=True)), _position(ahead))


def _position(ahead: int) -> int | None:
    """Jobs ahead, as the scripts tell them."""
    return None if ahead < 0 else ahead


def _parse_cursor(cursor: str | None) -> tuple[str, str]:
    if cursor is None:
        return "", ""
    at, _, job_id = cursor.partition(".")
    if not (at.isascii() and at.isdigit() and job_id):
        raise ValueError("not a cursor of this listing")
    return at, job_id
