"""The front end's side of the queue: submit, read, stream, list, cancel and delete jobs; list workers and cards.

Every method may raise redis.exceptions.RedisError: Redis is away, or it refuses to write. A job whose record is damaged
ends as failed when a method finds that, and is returned like that.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict
from typing import Any, TypeVar

import redis.asyncio
import structlog
from redis.exceptions import ResponseError

from tasks import token_log
from tasks.card import Card
from tasks.celery_app import make_app
from tasks.errors import (
    QueueFullError,
    QueueMemoryError,
    QueuePositionError,
    RecordError,
)
from tasks.estimate import QueueLoad
from tasks.job import Job, Status
from tasks.message import Renderer
from tasks.redis_client.errors import is_permanent
from tasks.settings import Settings
from tasks.store import keys, reaped, schema, scripts
from tasks.store.new_job import Idempotency, NewJob, Submitted
from tasks.store.reaped import Reaped
from tasks.store.replies import (
    JobChanges,
    JobVersion,
    Page,
    WorkerCounts,
    card_of,
    changes_of,
    job_of,
    names_of,
    parse_cursor,
    position_of,
    prior_job,
    switching_worker_of,
    worker_of,
)
from tasks.switching_info import SwitchingInfo
from tasks.token_log import Entry
from tasks.worker_info import WorkerInfo

log = structlog.get_logger(__name__)

T = TypeVar("T")


# Aliases, because `list` is a method inside the class.
Counts = list[WorkerCounts]
Entries = list[Entry]
Workers = list[WorkerInfo]
SwitchingWorkers = list[SwitchingInfo]


class JobStore:
    """The queue in Redis, for asyncio. One instance per process."""

    def __init__(self, client: redis.asyncio.Redis, settings: Settings) -> None:
        self._redis = client
        self._settings = settings
        self._reap_arguments = reaped.arguments(settings)
        self._renderer = Renderer(make_app(settings))
        #: The cards that `cards` returned last, each with its JSON.
        self._parsed: dict[str, tuple[bytes, Card]] = {}

    async def check_schema(self) -> bool:
        """Mark an empty Redis with the layout's version, and return whether it was empty.

        Raises SchemaError if Redis holds keys in another layout.
        """
        return schema.check_reply(await self._call("schema", keys.SCHEMA_VERSION))

    async def submit(self, new: NewJob, *others: NewJob) -> Submitted:
        """Accept a job, or all jobs of a group, in one atomic call. The result names the first job.

        The jobs of a group have the same checkpoint, priority and limits. The idempotency key and `max_position` are
        those of the first one. Raises QueueFullError, QueuePositionError, QueueMemoryError, IdempotencyMismatchError
        and JobGoneError.
        """
        jobs = [(one, self._record_of(one)) for one in (new, *others)]
        outcome, *rest = await self._call(
            "submit",
            new.checkpoint,
            new.priority,
            self._settings.max_queued_jobs,
            "" if new.max_position is None else new.max_position,
            new.idempotency.key_hash if new.idempotency else "",
            new.idempotency.fingerprint if new.idempotency else "",
            *(part for one, fields in jobs for part in (one.id, one.reserve_bytes, len(fields), *fields)),
        )
        if outcome == b"full":
            raise QueueFullError(self._settings.max_queued_jobs)
        if outcome == b"far":
            raise QueuePositionError(rest[0], new.max_position or 0)
        if outcome == b"memory":
            raise QueueMemoryError(None if rest[0] < 0 else rest[0] / 1000)
        if outcome == b"created":
            return Submitted(rest[0].decode(), replayed=False)
        return Submitted(prior_job(outcome, *rest), replayed=True)

    def _record_of(self, new: NewJob) -> list[scripts.Argument]:
        """The fields of a job's record that the script does not set itself: field, value, ..."""
        ttl_ms = scripts.ms(self._settings.result_ttl_s if new.result_ttl_s is None else new.result_ttl_s)
        fields: dict[str, scripts.Argument] = {
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
        if new.group is not None:
            fields["group"] = new.group.to_text()
        if new.retry_of is not None:
            fields["retry_of"] = new.retry_of
        if new.reply_to is not None:
            fields["reply_to"] = new.reply_to
        if new.predicted_s is not None:
            fields["predicted_ms"] = max(1, scripts.ms(new.predicted_s))
        if new.idempotency is not None:
            # The time counts from the job's end: the key of a live job does not expire.
            fields["idempotency"] = new.idempotency.key_hash
            fields["idempotency_ttl_ms"] = max(ttl_ms, scripts.ms(self._settings.idempotency_ttl_s))
        return [part for field in fields.items() for part in field]

    async def find(self, key: Idempotency) -> str | None:
        """The id of the job that an earlier request with this key created; None if there was no such request.

        Raises IdempotencyMismatchError, and JobGoneError if that job was deleted or has expired.
        """
        prior = await self._call("find", key.key_hash, key.fingerprint)
        return None if prior is None else prior_job(*prior)

    async def get(self, job_id: str) -> Job | None:
        """The job, with its position if it waits; None if there is no such job."""

        async def read() -> Job | None:
            return job_of(await self._script("view", job_id))

        return await self._mended(job_id, read)

    async def versions(self, job_ids: Sequence[str]) -> Sequence[JobVersion | None]:
        """The version and the position of each job, in one call; None for a job that does not exist."""
        found = await self._call("versions", *job_ids)
        return [None if of_job is None else JobVersion(of_job[0], position_of(of_job[1])) for of_job in found]

    async def changes(self, job_id: str, after: int = 0, k: int = 0) -> JobChanges | None:
        """The changes of a job since the cursor `<after>-<k>`, in one call; None if there is no such job."""

        async def read() -> JobChanges | None:
            reply = await self._script("changes", job_id, f"{after}-{k}")
            return None if reply is None else changes_of(job_id, after, reply)

        return await self._mended(job_id, read)

    async def delete(self, job_id: str) -> bool:
        """Delete a job in any state, with its prompt and its text. False if there is no such job."""
        keep_id_ms = scripts.ms(self._settings.result_ttl_s)
        return bool(await self._mended(job_id, lambda: self._script("delete", job_id, keep_id_ms)))

    async def was_deleted(self, job_id: str) -> bool:
        """Whether a job that does not exist was deleted recently."""
        return bool(await self._redis.exists(keys.deleted(job_id)))

    async def queue_load(self, checkpoint: str) -> QueueLoad:
        """The load of a checkpoint's queue, from which waiting times are estimated."""
        waiting, waiting_tokens, running, slots, *pace, accuracy = await self._call("queue_load", checkpoint)
        first_token_ms, ms_per_token, share, load_ms = (float(value) if value else None for value in pace)
        return QueueLoad(
            waiting=waiting,
            waiting_tokens=waiting_tokens,
            running=running,
            slots=slots,
            first_token_s=None if first_token_ms is None else first_token_ms / 1000,
            s_per_token=0.0 if ms_per_token is None else ms_per_token / 1000,
            share=1.0 if share is None else share,
            load_s=None if load_ms is None else load_ms / 1000,
            accuracy=tuple(float(ratio) for ratio in accuracy),
        )

    async def cancel(self, job_id: str) -> Job | None:
        """Cancel a job and return it; None if there is no such job.

        A waiting job ends at once. The worker of a running job is asked to stop it.
        """

        async def cancel() -> Job | None:
            return job_of(await self._script("cancel", job_id))

        return await self._mended(job_id, cancel)

    async def log(self, job_id: str, after: int = 0, k: int = 0) -> Entries:
        """The entries of the log after the cursor `<after>-<k>`. If the cursor is inside an entry, that entry is cut.

        With k = 0 the result includes entries without tokens (an attempt mark, a last piece of text) at `after`.
        """

        async def read() -> Entries:
            # redis-py's types also allow decoded replies, which our clients do not use.
            raw: Any = await self._redis.xrange(keys.tokens(job_id), min=f"({after}-{k}")
            with token_log.damage_of(job_id):
                return [Entry.decode(entry).cut(after) for entry in raw]

        return await self._mended(job_id, read)

    async def list(
        self, *, status: Status | None = None, owner: str | None = None, cursor: str | None = None, limit: int = 20
    ) -> Page:
        """One page of jobs, newest first: at most `limit`, and fewer if their texts are long.

        Raises CursorError if `cursor` is not the `next_cursor` of a page.
        """
        last_at, last_id = parse_cursor(cursor)
        views, next_at, next_id = await self._call("list", status or "", owner or "", limit, last_at, last_id)
        jobs = [await self._listed(view) for view in views]
        return Page(
            tuple(job for job in jobs if job is not None), f"{next_at.decode()}.{next_id.decode()}" if next_id else None
        )

    async def card(self, checkpoint: str) -> Card | None:
        """The card of a checkpoint, also if no worker serves it now; None if no worker ever did."""
        found = (await self._cards([checkpoint])).get(checkpoint)
        return None if found is None else found[1]

    async def cards(self) -> dict[str, Card]:
        """All cards, by the name of the checkpoint: of those that a worker has ever served, and of those offered."""
        offered: Any = await self._redis.zrange(keys.OFFERED, 0, -1)
        found = await self._cards(names_of({*offered, *await self._members(keys.CHECKPOINTS)}))
        self._parsed = found
        return {name: card for name, (_, card) in found.items()}

    async def offered(self) -> frozenset[str]:
        """Names of the checkpoints that switching workers offer."""
        names: Any = await self._redis.zrangebyscore(keys.OFFERED, "+inf", "+inf")
        return frozenset(names_of(names))

    async def catalog_version(self) -> bytes | None:
        """Changes when a card changes, or what is offered. What was read after it is at least as new."""
        version: Any = await self._redis.get(keys.CATALOG_VERSION)
        return None if version is None else bytes(version)

    async def tokenizer(self, digest: str) -> bytes | None:
        """The published tokenizer of the checkpoint with this digest; None if there is none that can be read."""
        try:
            content: Any = await self._redis.get(keys.tokenizer(digest))
        except ResponseError as error:
            if not is_permanent(error):
                raise
            log.error("tokenizer_damaged", digest=digest, error=str(error))
            return None
        return None if content is None else bytes(content)

    async def worker_counts(self) -> Counts:
        """The counts of each checkpoint that has a live worker, in order of their names.

        The cost does not depend on how many workers there are.
        """
        found = await self._call("worker_counts")
        return [WorkerCounts(name.decode(errors="replace"), *counts) for name, *counts in sorted(found)]

    async def workers(self, checkpoint: str | None = None) -> Workers:
        """The live workers of one checkpoint, or of all, in order of their names."""
        served = names_of(await self._members(keys.CHECKPOINTS)) if checkpoint is None else [checkpoint]
        async with self._redis.pipeline(transaction=False) as pipeline:
            for name in served:
                pipeline.zrange(keys.workers(name), 0, -1)
            names = names_of({name for found in await pipeline.execute() for name in found})
            for name in names:
                pipeline.hgetall(keys.worker(name))
            hashes = await pipeline.execute(raise_on_error=False)
        found = [worker_of(name, fields) for name, fields in zip(names, hashes, strict=True)]
        return [worker for worker in found if worker is not None and worker.checkpoint in served]

    async def switching_workers(self, checkpoint: str | None = None) -> SwitchingWorkers:
        """The live switching workers that offer a checkpoint, or all of them, in order of their names."""
        members: Any = (
            await self._redis.zrange(keys.SWITCHING, 0, -1)
            if checkpoint is None
            else await self._members(keys.offering(checkpoint))
        )
        names = names_of(members)
        async with self._redis.pipeline(transaction=False) as pipeline:
            for name in names:
                pipeline.hgetall(keys.switching_worker(name))
                pipeline.hlen(keys.offers(name))
            replies = await pipeline.execute(raise_on_error=False)
        found = [switching_worker_of(*one) for one in zip(names, replies[::2], replies[1::2], strict=True)]
        return [worker for worker in found if worker is not None]

    async def reap(self) -> Reaped:
        """Run the reaper, unless another process has just run it. Every process calls it each second."""
        return Reaped.from_reply(await self._call("reap", *self._reap_arguments))

    async def _members(self, key: str) -> set[bytes]:
        members: Any = await self._redis.smembers(key)
        return set(members)

    async def _cards(self, names: Sequence[str]) -> dict[str, tuple[bytes, Card]]:
        """The cards that can be read, with their JSON. Workers publish a damaged one again after the reaper deleted it.

        Those that have not changed are not parsed again: there may be a thousand.
        """
        async with self._redis.pipeline(transaction=False) as pipeline:
            for name in names:
                pipeline.hget(keys.card(name), "card")
            texts = await pipeline.execute(raise_on_error=False)
        cards = {}
        for name, text in zip(names, texts, strict=True):
            known = self._parsed.get(name)
            card = known[1] if known is not None and known[0] == text else card_of(name, text)
            if card is not None:
                cards[name] = (text, card)
        return cards

    async def _listed(self, view: Sequence[Any]) -> Job | None:
        """A job of a page; None if it was deleted, or if its record is damaged and Redis refuses to write."""
        try:
            return job_of(view)
        except RecordError as error:
            try:
                return await self.get(error.job_id)
            except ResponseError as refusal:
                log.warning("job_left_out_of_list", job_id=error.job_id, error=str(refusal))
                return None

    async def _script(self, name: str, *arguments: scripts.Argument) -> Any:
        return await scripts.get(name).acall(self._redis, *arguments)

    async def _call(self, name: str, *arguments: scripts.Argument) -> Any:
        """Run a script. If it fails by itself, keys of the queue may hold a wrong type: mend that, and run it again."""
        try:
            return await self._script(name, *arguments)
        except ResponseError as error:
            if not is_permanent(error):
                raise
            log.error("script_failed", script=name, error=str(error))
            await self._script("repair", *scripts.repair_arguments())
            return await self._script(name, *arguments)

    async def _mended(self, job_id: str, call: Callable[[], Awaitable[T]]) -> T:
        """The result of a call about one job. If it fails because of the job's data, mend them, and call again."""
        for force in (False, True):
            fields: tuple[str, ...] = ()
            try:
                return await call()
            except RecordError as error:
                fields = error.fields
            except ResponseError as error:
                if not is_permanent(error):
                    raise
                log.error("job_call_failed", job_id=job_id, error=str(error))
            await self._script("repair", *scripts.repair_arguments(job_id, fields, force=force))
        return await call()
