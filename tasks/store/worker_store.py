"""The workers' side of the queue: claim jobs, write what was decoded, give jobs back, stay registered.

Every method may raise redis.exceptions.RedisError where Redis is away or refuses to write. Whatever was sent may then
be sent again, whether or not it arrived: each script acts once.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import redis
from redis.exceptions import NoScriptError

from tasks import token_log
from tasks.card import Card
from tasks.errors import CardConflictError
from tasks.generation import FinishReason
from tasks.job import Job, JobError, Status
from tasks.settings import Settings
from tasks.store import keys, reaped, schema, scripts
from tasks.store.reaped import Reaped
from tasks.worker_info import WorkerInfo


@dataclass(frozen=True, slots=True)
class Claimed:
    """A job that is this worker's now."""

    #: The fence: every later write names it.
    attempt: int
    #: What earlier attempts left: tokens, and one text for each.
    token_ids: tuple[int, ...]
    pieces: tuple[str, ...]
    #: How long it may run from now on, in seconds; None: without a limit.
    time_left_s: float | None = None


@dataclass(frozen=True, slots=True)
class Refused:
    """A job that is not for this worker. Its message is done with, whatever the reason."""

    #: `gone` no such job; `terminal` it is over; `running` another claim holds it; `waiting` its turn comes with
    #: another message; `overdue` it is over, its time was up; `digest` it has failed, its weights are gone;
    #: `superseded` the worker's own weights are the old ones, and another worker gets the job.
    reason: Literal["gone", "terminal", "running", "waiting", "overdue", "digest", "superseded"]


@dataclass(frozen=True, slots=True, kw_only=True)
class AppendTokens:
    """New tokens of a running job."""

    job_id: str
    attempt: int
    #: Tokens that the log holds, as far as the sender knows. What it turns out to have already is skipped.
    before: int
    token_ids: tuple[int, ...]
    #: One text for each token.
    pieces: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class FinishJob:
    """The end of a running job, with the tokens that its log lacks."""

    job_id: str
    attempt: int
    before: int
    token_ids: tuple[int, ...]
    pieces: tuple[str, ...]
    #: Text behind the last token's: it was held back, or belongs to no token. Sent apart from the pieces.
    tail: str
    status: Status
    finish_reason: FinishReason
    #: The whole generated text.
    completion: str
    error: JobError | None = None
    #: Tokens that the worker knew when it heard that the job is to stop; None where it did not.
    tokens_at_cancel: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FlushReply:
    """What came of an AppendTokens or a FinishJob."""

    #: The job is not this attempt's (any more); nothing was written, and nothing will be.
    fenced: bool = False
    #: The log holds fewer tokens than `before`: nothing was written, send from `length`.
    gap: bool = False
    #: Tokens in the log now.
    length: int = 0
    cancel_requested: bool = False
    #: Somebody reads along.
    followed: bool = False


@dataclass(frozen=True, slots=True)
class Renewal:
    """What came of the leases."""

    #: Jobs that are no longer this worker's.
    lost: tuple[str, ...]
    #: Jobs that were asked to stop.
    cancelled: tuple[str, ...]


class WorkerStore:
    """Jobs in Redis, for threads."""

    def __init__(self, client: redis.Redis, settings: Settings) -> None:
        self._redis = client
        self._lease_ms = round(settings.lease_s * 1000)
        self._worker_ttl_ms = round(settings.worker_ttl_s * 1000)
        self._reap_arguments = reaped.arguments(settings)
        self._card: Card | None = None

    def check_schema(self) -> None:
        """Raises SchemaError where Redis holds another version's keys."""
        schema.check(self._redis)

    def register(self, info: WorkerInfo, card: Card) -> None:
        """Enter a worker and publish its card. Jobs that an earlier run under its name still held wait again.

        Raises CardConflictError where live workers serve other weights.
        """
        outcome, *rest = self._call(
            "register",
            info.name,
            info.incarnation,
            info.checkpoint,
            card.digest,
            card.to_json(),
            self._worker_ttl_ms,
            *info.to_fields(),
        )
        if outcome == b"conflict":
            raise CardConflictError(info.checkpoint, card.digest, rest[0].decode())
        self._card = card

    def heartbeat(self, info: WorkerInfo) -> bool:
        """Say that a registered worker lives. False: Redis had lost its data, and the worker is registered again.

        Raises CardConflictError where the checkpoint's name belongs to other weights since: the worker was silent for
        so long that it counted as gone.
        """
        outcome, *served = self._call(
            "heartbeat", info.name, info.checkpoint, info.digest, self._worker_ttl_ms, *info.to_fields()
        )
        if outcome == b"conflict":
            raise CardConflictError(info.checkpoint, info.digest, served[0].decode())
        if outcome == b"unknown":
            if self._card is None:
                raise RuntimeError("heartbeat before register")
            self.check_schema()
            self.register(info, self._card)
        return bool(outcome != b"unknown")

    def deregister(self, info: WorkerInfo) -> None:
        """Remove a worker that stops. A later run under the same name stays."""
        self._call("deregister", info.name, info.incarnation, info.checkpoint)

    def read(self, job_id: str) -> Job | None:
        """The job, without its position."""
        # redis-py's types leave room for decoded replies, which our clients never ask for.
        fields: Any = self._redis.hgetall(keys.job(job_id))
        return Job.from_hash(fields) if fields else None

    def over(self, job_ids: Sequence[str]) -> set[str]:
        """Those of the jobs that do not wait (any more), in one round trip."""
        with self._redis.pipeline(transaction=False) as pipeline:
            for job_id in job_ids:
                pipeline.hget(keys.job(job_id), "status")
            statuses: list[Any] = pipeline.execute()
        waits = Status.QUEUED.encode()
        return {job_id for job_id, status in zip(job_ids, statuses, strict=True) if status != waits}

    def cancel(self, job_id: str) -> None:
        """Cancel a job: one that waits is over, one that runs is asked to stop."""
        self._call("cancel", job_id)

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
        """Take a dispatched job, with a lease. `warnings` join those of the record.

        `claim` names this claim, so that sending it again after a lost reply is no second one; None draws a name.
        """
        outcome, *rest = self._call(
            "claim",
            job_id,
            worker,
            incarnation,
            digest,
            prompt_tokens,
            json.dumps(list(warnings)),
            self._lease_ms,
            claim or secrets.token_hex(8),
        )
        if outcome == b"refused":
            return Refused(rest[0].decode())
        attempt, entries, left_ms = rest
        log = token_log.TokenLog(token_log.from_reply(entries))
        return Claimed(attempt, log.token_ids, log.token_pieces, None if left_ms < 0 else left_ms / 1000)

    def flush(self, batch: Sequence[AppendTokens | FinishJob]) -> list[FlushReply]:
        """Write for many jobs, at most one item for each, in one round trip; one reply for each item.

        Where Redis fails for one item this raises, though others may have been written: send all of them again.
        """
        replies = self._send(batch)
        forgotten = [index for index, reply in enumerate(replies) if isinstance(reply, NoScriptError)]
        if forgotten:
            for script in {_script(batch[index]) for index in forgotten}:
                self._redis.script_load(script.text)
            for index, reply in zip(forgotten, self._send([batch[index] for index in forgotten]), strict=True):
                replies[index] = reply
        for reply in replies:
            if isinstance(reply, Exception):
                raise reply
        return [_flush_reply(reply) for reply in replies]

    def reject(self, job_id: str, error: JobError, *, digest: str) -> None:
        """Fail a waiting job that its checkpoint can never run. `digest` is that of the weights which say so."""
        self._call("reject", job_id, digest, error.to_json())

    def requeue(self, job_id: str) -> None:
        """Give a job back whose message was taken but that was not claimed: it is next in line."""
        self._call("requeue", job_id)

    def release(self, job_id: str, attempt: int, *, count_loss: bool = False) -> bool:
        """Give a running job back, with its tokens: it is next in line. False where it is not this attempt's.

        A counted loss is one too many at times, and the job fails; one that was asked to stop is cancelled.
        """
        return bool(self._call("release", job_id, attempt, int(count_loss)))

    def renew(self, leases: Mapping[str, int]) -> Renewal:
        """Extend the leases of running jobs, given as the attempt of each job id."""
        lost, cancelled = self._call("renew", self._lease_ms, *(part for lease in leases.items() for part in lease))
        return Renewal(tuple(job.decode() for job in lost), tuple(job.decode() for job in cancelled))

    def reap(self) -> Reaped:
        """Bring back what got lost, unless somebody has just done so. Every process calls it each second."""
        return Reaped.from_reply(self._call("reap", *self._reap_arguments))

    def _call(self, script: str, *arguments: scripts.Argument) -> Any:
        return scripts.get(script).call(self._redis, *arguments)

    def _send(self, batch: Sequence[AppendTokens | FinishJob]) -> list[Any]:
        with self._redis.pipeline(transaction=False) as pipeline:
            for item in batch:
                pipeline.evalsha(_script(item).sha, 0, *_arguments(item))
            replies: list[Any] = pipeline.execute(raise_on_error=False)
            return replies


def _script(item: AppendTokens | FinishJob) -> scripts.Script:
    return scripts.get("append" if isinstance(item, AppendTokens) else "finish")


def _arguments(item: AppendTokens | FinishJob) -> tuple[str, ...]:
    appended = (
        item.job_id,
        str(item.attempt),
        str(item.before),
        token_log.encode_ids(item.token_ids),
        token_log.encode_pieces(item.pieces),
    )
    if isinstance(item, AppendTokens):
        return appended
    return (
        *appended,
        token_log.encode_pieces([item.tail]) if item.tail else "",
        item.status,
        item.finish_reason,
        item.completion,
        item.error.to_json() if item.error else "",
        "" if item.tokens_at_cancel is None else str(item.tokens_at_cancel),
    )


def _flush_reply(reply: list[Any]) -> FlushReply:
    match reply:
        case [b"fenced"]:
            return FlushReply(fenced=True)
        case [b"gap", length]:
            return FlushReply(gap=True, length=length)
        case [_, length, cancel_requested, listeners]:
            return FlushReply(length=length, cancel_requested=bool(cancel_requested), followed=bool(listeners))
        case _:
            raise TypeError(f"no reply of append or finish: {reply!r}")
