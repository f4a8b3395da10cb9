"""The workers' side of the queue: claim jobs, write their tokens, release jobs, register and send heartbeats.

Every method may raise redis.exceptions.RedisError: Redis is away, or it refuses to write. The call can then
be repeated, whether or not Redis received it: every script is idempotent. A job whose record is damaged ends as failed
when a method finds that.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, cast

import redis
import structlog
from redis.exceptions import NoScriptError, RedisError, ResponseError

from tasks import failures, token_log
from tasks.card import Card
from tasks.errors import CardConflictError, RecordError, WorkerReplacedError
from tasks.job import Job, JobError, Status
from tasks.record import RecordFields
from tasks.redis_client.errors import is_permanent
from tasks.settings import Settings
from tasks.store import keys, reaped, schema, scripts
from tasks.store.job_writes import AppendTokens, FinishJob, FlushReply, arguments_of, flush_reply, script_of
from tasks.store.mending import call_mended
from tasks.store.reaped import Reaped
from tasks.worker_info import WorkerInfo

log = structlog.get_logger(__name__)

T = TypeVar("T")

#: How long a tokenizer is kept after its last worker has gone, in ms: a day. Finished jobs may still need it.
TOKENIZER_TTL_MS = 86_400_000


@dataclass(frozen=True, slots=True)
class Claimed:
    """A job that this worker now holds."""

    #: Number of the attempt. Every later write carries it, and is refused if the job has another attempt by then.
    attempt: int
    #: Tokens of earlier attempts.
    token_ids: tuple[int, ...]
    #: One text for each of these tokens.
    pieces: tuple[str, ...]
    #: Packed log-probabilities of each of these tokens; empty if the request did not ask for them.
    logprobs: tuple[bytes, ...] = ()
    #: Whether the log has the log-probabilities of the prompt.
    has_prompt_logprobs: bool = False
    #: How long the job may run from now on, in seconds; None for no limit.
    time_left_s: float | None = None


@dataclass(frozen=True, slots=True)
class Refused:
    """A claim that was refused. Whatever the reason, the worker acknowledges the message."""

    #: `gone`: no such job. `terminal`: the job has ended. `running`: another claim holds the job. `waiting`: the job is
    #: not dispatched, another message will come for it. `overdue`: a time limit had passed, and the job has ended now.
    #: `damaged`: the record is damaged, and the job has failed now. `digest`: no worker still has the job's weights,
    #: and the job has failed. `superseded`: this worker has old weights, and the job is requeued for another worker.
    reason: Literal["gone", "terminal", "running", "waiting", "overdue", "damaged", "digest", "superseded"]


@dataclass(frozen=True, slots=True)
class Renewal:
    """The result of renewing leases."""

    #: Jobs that this worker no longer holds.
    lost: tuple[str, ...]
    #: Jobs with a cancel request.
    cancelled: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Ended:
    """How a job has ended."""

    status: Status
    #: Empty if the job has no error.
    error_code: str


class WorkerStore:
    """The queue in Redis, for threads. Safe to share between threads."""

    def __init__(self, client: redis.Redis, settings: Settings) -> None:
        self._redis = client
        self._lease_ms = scripts.ms(settings.lease_s)
        self._worker_ttl_ms = scripts.ms(settings.worker_ttl_s)
        self._reap_arguments = reaped.arguments(settings)
        self._card: Card | None = None

    def check_schema(self) -> None:
        """Mark an empty Redis with the layout's version. Raises SchemaError if Redis holds keys in another layout."""
        schema.check_reply(self._call("schema", keys.SCHEMA_VERSION))

    def register(self, info: WorkerInfo, card: Card) -> None:
        """Register a worker and publish its card. Jobs that an earlier run under its name still holds are reclaimed.

        Raises CardConflictError if live workers serve other weights under the checkpoint's name.
        """
        outcome, *rest = self._register(info, card.digest, card.to_json())
        if outcome == b"conflict":
            raise CardConflictError(info.checkpoint, card.digest, rest[0].decode())
        self._card = card

    def announce(self, info: WorkerInfo) -> None:
        """Send the heartbeat of a worker that loads its checkpoint. `register` follows, with the same incarnation.

        Nothing happens while an earlier run under its name is listed: `register` replaces that.
        """
        self._register(info, "", "")

    def heartbeat(self, info: WorkerInfo) -> bool:
        """Send the heartbeat of a registered worker. False if Redis had lost its data: the worker is registered again.

        Raises CardConflictError if the checkpoint's card has other weights now: the worker sent no heartbeat for so
        long that it counted as gone, and another worker took the checkpoint's name. Raises WorkerReplacedError if
        another worker has registered under this worker's name.
        """
        outcome, *served = self._call(
            "heartbeat",
            info.name,
            info.incarnation,
            info.checkpoint,
            info.digest,
            self._worker_ttl_ms,
            *info.to_fields(),
        )
        if outcome == b"replaced":
            raise WorkerReplacedError(info.name)
        if outcome == b"conflict":
            raise CardConflictError(info.checkpoint, info.digest, served[0].decode())
        if outcome == b"replaced":
            raise WorkerReplacedError(info.name)
        if outcome == b"unknown":
            if self._card is None:
                raise RuntimeError("heartbeat before register")
            self.check_schema()
            self.register(info, self._card)
        return bool(outcome != b"unknown")

    def deregister(self, info: WorkerInfo) -> None:
        """Remove a worker that stops. A later run under the same name stays registered."""
        self._call("deregister", info.name, info.incarnation, info.checkpoint)

    def read(self, job_id: str) -> Job | None:
        """The job, without its position."""

        def read() -> Job | None:
            # redis-py's types also allow decoded replies, which our clients do not use.
            fields: Any = self._redis.hgetall(keys.job(job_id))
            return Job.from_hash(job_id, fields) if fields else None

        return self._mended(job_id, read)

    def ended(self, job_id: str) -> Ended | None:
        """How a job has ended. None if it has not, or does not exist."""

        def read() -> Ended | None:
            names = ("status", "error")
            values: Any = self._redis.hmget(keys.job(job_id), names)
            found = {name.encode(): value for name, value in zip(names, values, strict=True) if value is not None}
            if not found:
                return None
            fields = RecordFields(job_id, found)
            status, error = fields.required("status", Status), fields.optional("error", JobError.from_json)
            fields.check()
            return Ended(status, "" if error is None else error.code) if status.terminal else None

        return self._mended(job_id, read)

    def no_longer_queued(self, job_ids: Sequence[str]) -> set[str]:
        """The jobs among `job_ids` that no longer wait, or do not exist, in one round trip."""
        with self._redis.pipeline(transaction=False) as pipeline:
            for job_id in job_ids:
                pipeline.hget(keys.job(job_id), "status")
            # The status of a record that is no hash is an error.
            statuses: list[Any] = pipeline.execute(raise_on_error=False)
        queued = Status.QUEUED.encode()
        return {job_id for job_id, status in zip(job_ids, statuses, strict=True) if status != queued}

    def cancel(self, job_id: str) -> None:
        """Cancel a job: a waiting job ends at once, the worker of a running job is asked to stop it."""
        self._mended(job_id, lambda: self._script("cancel", job_id))

    def claim(
        self,
        job_id: str,
        *,
        worker: str,
        incarnation: str,
        digest: str,
        prompt_tokens: int,
        warnings: Sequence[str] = (),
        claim: str | None = None,
    ) -> Claimed | Refused:
        """Claim a dispatched job, with a lease. `warnings` are added to those of the record.

        `claim` is a name for this claim: a call that is repeated with the same name after a lost reply is the same
        claim. None draws a random name.
        """
        arguments: tuple[scripts.Argument, ...] = (
            job_id,
            worker,
            incarnation,
            digest,
            prompt_tokens,
            json.dumps(list(warnings)),
            self._lease_ms,
            claim or secrets.token_hex(8),
        )
        return self._mended(job_id, lambda: _claim_reply(job_id, self._script("claim", *arguments)))

    def flush(self, batch: Sequence[AppendTokens | FinishJob]) -> list[FlushReply]:
        """Write the items of many jobs, at most one per job, in one round trip. Returns one reply for each item.

        Raises if Redis is away or refuses to write. Some items may have been written then: send all of them again. If
        an item fails because of its job's data, that job ends as failed, and the item is refused as if another attempt
        held the job.
        """
        replies = self._send(batch)
        unknown_script = [index for index, reply in enumerate(replies) if isinstance(reply, NoScriptError)]
        if unknown_script:
            for script in {script_of(batch[index]) for index in unknown_script}:
                self._redis.script_load(script.text)
            again = self._send([batch[index] for index in unknown_script])
            for index, reply in zip(unknown_script, again, strict=True):
                replies[index] = reply
        for reply in replies:
            if isinstance(reply, Exception) and not (isinstance(reply, RedisError) and is_permanent(reply)):
                raise reply
        return [
            self._send_again(item) if isinstance(reply, Exception) else flush_reply(reply)
            for item, reply in zip(batch, replies, strict=True)
        ]

    def reject(self, job_id: str, error: JobError, *, digest: str) -> None:
        """Fail a waiting job that no worker of its checkpoint can run. `digest` is that of this worker's weights."""
        self._mended(job_id, lambda: self._script("reject", job_id, digest, error.to_json()))

    def requeue(self, job_id: str) -> None:
        """Requeue a job whose message this worker took and which it will not claim: the job is served next."""
        self._mended(job_id, lambda: self._script("requeue", job_id))

    def release(self, job_id: str, attempt: int, *, count_loss: bool = False, out_of_memory: bool = False) -> bool:
        """Release a running job, with its tokens: it is served next. False if this attempt does not hold it.

        The job ends instead if a cancel was requested, if it has too many losses, or if a time limit has passed.
        `out_of_memory` says why the loss happened: the error of a job with too many losses then says it too.
        """
        failure = (failures.OUT_OF_MEMORY if out_of_memory else failures.WORKER_LOST).to_json()
        return bool(self._mended(job_id, lambda: self._script("release", job_id, attempt, int(count_loss), failure)))

    def renew(self, leases: Mapping[str, int]) -> Renewal:
        """Renew the leases of running jobs. `leases` has the attempt for each job id."""
        lost, cancelled = self._call("renew", self._lease_ms, *(part for lease in leases.items() for part in lease))
        return Renewal(tuple(job.decode() for job in lost), tuple(job.decode() for job in cancelled))

    def keep_tokenizer(self, digest: str, content: bytes) -> None:
        """Keep the tokenizer of the checkpoint with this digest in Redis, and put it there if anything else is there.

        Front ends read it. It expires a day after the last call.
        """
        key = keys.tokenizer(digest)
        try:
            is_there = self._redis.strlen(key) == len(content)
        except ResponseError as error:
            if not is_permanent(error):
                raise
            is_there = False  # another type
        if not is_there or not self._redis.pexpire(key, TOKENIZER_TTL_MS):
            self._redis.set(key, content, px=TOKENIZER_TTL_MS)

    def reap(self) -> Reaped:
        """Run the reaper, unless another process has just run it. Every process calls it each second."""
        return Reaped.from_reply(self._call("reap", *self._reap_arguments))

    def _register(self, info: WorkerInfo, digest: str, card: str) -> list[Any]:
        reply: list[Any] = self._call(
            "register",
            info.name,
            info.incarnation,
            info.checkpoint,
            digest,
            card,
            self._worker_ttl_ms,
            *info.to_fields(),
        )
        return reply

    def _script(self, name: str, *arguments: scripts.Argument) -> Any:
        return scripts.get(name).call(self._redis, *arguments)

    def _call(self, name: str, *arguments: scripts.Argument) -> Any:
        return call_mended(self._redis, name, *arguments)

    def _mended(self, job_id: str, call: Callable[[], T]) -> T:
        """The result of a call about one job. If it fails because of the job's data, mend them, and call again."""
        for force in (False, True):
            fields: tuple[str, ...] = ()
            try:
                return call()
            except RecordError as error:
                fields = error.fields
            except ResponseError as error:
                if not is_permanent(error):
                    raise
                log.error("job_call_failed", job_id=job_id, error=str(error))
            self._script("repair", *scripts.repair_arguments(job_id, fields, force=force))
        return call()

    def _send_again(self, item: AppendTokens | FinishJob) -> FlushReply:
        """Send an item alone that failed because of its job's data, after those were mended."""
        try:
            return flush_reply(
                self._mended(item.job_id, lambda: self._script(script_of(item).name, *arguments_of(item)))
            )
        except ResponseError as error:
            if not is_permanent(error):
                raise
            log.error("job_given_up", job_id=item.job_id, error=str(error))
            return FlushReply(fenced=True)

    def _send(self, batch: Sequence[AppendTokens | FinishJob]) -> list[Any]:
        with self._redis.pipeline(transaction=False) as pipeline:
            for item in batch:
                pipeline.evalsha(script_of(item).sha, 0, *cast(tuple[str, ...], arguments_of(item)))
            replies: list[Any] = pipeline.execute(raise_on_error=False)
            return replies


def _claim_reply(job_id: str, reply: Sequence[Any]) -> Claimed | Refused:
    """The reply of `claim.lua`. Raises RecordError for a log that cannot be decoded, or that has a gap."""
    outcome, *rest = reply
    if outcome == b"refused":
        return Refused(rest[0].decode())
    attempt, entries, left_ms = rest
    with token_log.damage_of(job_id):
        found = token_log.TokenLog(token_log.from_reply(entries))
        found.check()
    return Claimed(
        attempt,
        found.token_ids,
        found.token_pieces,
        found.token_logprobs,
        bool(found.prompt_logprobs),
        None if left_ms < 0 else left_ms / 1000,
    )
