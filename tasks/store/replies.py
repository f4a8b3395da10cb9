"""The replies of the scripts, and of Redis, as the front end uses them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import structlog
from redis.exceptions import ResponseError

from tasks import record, token_log
from tasks.card import Card
from tasks.errors import CursorError, IdempotencyMismatchError, JobGoneError
from tasks.job import Job, Status
from tasks.record import RecordFields
from tasks.redis_client.errors import is_permanent
from tasks.switching_info import SwitchingInfo
from tasks.token_log import Entry, from_reply
from tasks.worker_info import WorkerInfo

log = structlog.get_logger(__name__)

#: Most digits of the time in a cursor.
MOST_CURSOR_DIGITS = 15


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


def names_of(members: Iterable[bytes]) -> list[str]:
    """The names in a set of names, in order, without members that are no text: only another program writes those."""
    names = []
    for member in members:
        try:
            names.append(member.decode())
        except UnicodeDecodeError:
            log.error("name_damaged", member=repr(member))
    return sorted(names)


def prior_job(outcome: bytes, job_id: bytes, reason: bytes = b"") -> str:
    """The job in a reply about an idempotency key. Raises IdempotencyMismatchError and JobGoneError."""
    if outcome == b"mismatch":
        raise IdempotencyMismatchError(job_id.decode())
    if outcome == b"gone":
        raise JobGoneError(job_id.decode(), deleted=reason == b"deleted")
    return job_id.decode()


def job_of(view: Sequence[Any] | None) -> Job | None:
    """The job in the reply of `view.lua`. Raises RecordError."""
    if view is None:
        return None
    flat, ahead, job_id = view
    return Job.from_hash(
        job_id.decode(errors="replace"), dict(zip(flat[::2], flat[1::2], strict=True)), position_of(ahead)
    )


def changes_of(job_id: str, after: int, reply: Sequence[Any]) -> JobChanges:
    """The reply of `changes.lua`. Raises RecordError."""
    status, attempt, worker, ahead, entries, *end = reply
    fields = {b"status": status, b"attempt": attempt, b"worker": worker}
    read = RecordFields(job_id, {name: value for name, value in fields.items() if value})
    with token_log.damage_of(job_id):
        cut = tuple(entry.cut(after) for entry in from_reply(entries))
    changes = JobChanges(
        status=read.required("status", Status),
        attempt=read.required("attempt", record.count),
        worker=read.optional("worker", str),
        position=position_of(ahead),
        entries=cut,
        ended=job_of([end[1], -1, job_id.encode()]) if end else None,
        end_id=end[0].decode() if end else "",
    )
    read.check()
    return changes


def card_of(name: str, text: bytes | Exception | None) -> Card | None:
    """A card that can be read; None for another one."""
    if isinstance(text, Exception) and not (isinstance(text, ResponseError) and is_permanent(text)):
        raise text
    if text is None or isinstance(text, Exception):
        return None
    try:
        return Card.from_json(text)
    except ValueError:
        log.error("card_damaged", checkpoint=name)
        return None


def worker_of(name: str, fields: Mapping[bytes, bytes] | Exception) -> WorkerInfo | None:
    """A live worker; None for one that is gone, whose hash has expired, or whose hash is damaged."""
    if isinstance(fields, Exception) and not (isinstance(fields, ResponseError) and is_permanent(fields)):
        raise fields
    if not fields:
        return None
    try:
        return WorkerInfo.from_hash({} if isinstance(fields, Exception) else fields)
    except (KeyError, ValueError):
        log.error("worker_damaged", worker=name)
        return None


def switching_worker_of(
    name: str, fields: Mapping[bytes, bytes] | Exception, offers: int | Exception
) -> SwitchingInfo | None:
    """As `worker_of`, of a switching worker. `offers`: how many checkpoints it offers."""
    for error in (fields, offers):
        if isinstance(error, Exception) and not (isinstance(error, ResponseError) and is_permanent(error)):
            raise error
    if not fields:
        return None
    try:
        if isinstance(fields, Exception) or isinstance(offers, Exception):
            raise TypeError("a key of another type")
        return SwitchingInfo.from_hash(fields, offers)
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError):
        log.error("switching_worker_damaged", worker=name)
        return None


def position_of(ahead: int) -> int | None:
    """The position in a script's reply."""
    return None if ahead < 0 else ahead


def parse_cursor(cursor: str | None) -> tuple[str, str]:
    if cursor is None:
        return "", ""
    at, _, job_id = cursor.partition(".")
    if not (at.isascii() and at.isdigit() and len(at) <= MOST_CURSOR_DIGITS and job_id):
        raise CursorError("not a cursor of this listing")
    return at, job_id
