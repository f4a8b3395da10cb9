"""The publisher: brings what the engine decoded into the jobs' logs, all jobs in one pipeline a flush."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import structlog
from redis.exceptions import RedisError

from tasks.store.worker_store import FlushReply, WorkerStore
from worker.engine.update import Update
from worker.jobs.running_job import RunningJob

log = structlog.get_logger(__name__)

T = TypeVar("T")

#: Wait between two tries while Redis is away, in seconds.
RETRY_S = 0.2
#: Tokens that nobody reads yet are sent after so many flush intervals. Until then they would be lost with this worker,
#: and decoded once more by another.
UNREAD_INTERVALS = 10


class PublisherStoppedError(Exception):
    """The worker stops: no job can be taken over any more."""


@dataclass(frozen=True, slots=True)
class _Adopt:
    job: RunningJob


@dataclass(frozen=True, slots=True)
class _HandBack:
    sequence_id: str


@dataclass(frozen=True, slots=True)
class _EngineDied:
    culprit: str | None


@dataclass(frozen=True, slots=True)
class _Drop:
    sequence_id: str


@dataclass(frozen=True, slots=True)
class _CancelHeard:
    job_id: str


_Item = _Adopt | _HandBack | _EngineDied | _Drop | _CancelHeard | Sequence[Update]


class Publisher:
    """One thread that owns every running job of this worker after its claim.

    The first token of a job and its end are sent at once; between them what somebody follows at most every
    `flush_interval_s`, and what nobody follows less often. What Redis did not confirm is sent again; the scripts make
    that harmless.
    """

    def __init__(self, store: WorkerStore, *, flush_interval_s: float, abort: Callable[[str], None]) -> None:
        """`abort` tells the engine to stop a sequence."""
        self._store = store
        self._flush_interval_s = flush_interval_s
        self._abort = abort
        #: None comes last, and nothing is adopted behind it.
        self._inbox: queue.SimpleQueue[_Item | None] = queue.SimpleQueue()
        #: By sequence id.
        self._jobs: dict[str, RunningJob] = {}
        #: When all that is followed was sent last, and when everything was.
        self._last_flush = 0.0
        self._last_whole_flush = 0.0
        self._stopping = threading.Event()
        self._door = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="publisher", daemon=True)
        #: Tokens that the engine decoded since the start, for the worker's speed.
        self.tokens_decoded = 0

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Flush, give every running job back, and end the thread. While Redis is away the jobs are left to it."""
        with self._door:
            self._stopping.set()
            self._inbox.put(None)
        self._thread.join()

    def adopt(self, job: RunningJob) -> None:
        """Take over a claimed job. Call it before the engine hears of the sequence. Raises PublisherStoppedError."""
        with self._door:
            if self._stopping.is_set():
                raise PublisherStoppedError
            self._inbox.put(_Adopt(job))

    def take(self, updates: Sequence[Update]) -> None:
        """Take in what the engine decoded in one step."""
        self._inbox.put(updates)

    def cancel(self, job_id: str) -> None:
        """Stop a job's sequence; what the engine then reports ends the job. Nothing where the job is not here."""
        for job in tuple(self._jobs.values()):
            if job.job_id == job_id:
                self._abort(job.sequence_id)

    def hear_cancel(self, job_id: str) -> None:
        """As `cancel`, at the moment that the cancel is asked for: what was decoded by now was decoded before it."""
        # Behind all that the engine has reported, which may wait for a flush.
        self._inbox.put(_CancelHeard(job_id))
        self.cancel(job_id)
        log.info("cancel_heard", job_id=job_id)

    def drop(self, sequence_id: str) -> None:
        """Forget a job that is no longer ours, and stop its sequence. Nothing more is written for it."""
        self._inbox.put(_Drop(sequence_id))

    def hand_back(self, sequence_id: str) -> None:
        """Give a job that the engine never got back to the queue."""
        self._inbox.put(_HandBack(sequence_id))

    def engine_died(self, culprit: str | None) -> None:
        """Flush and give every job that is adopted by now back to the queue.

        It is a loss for the `culprit`, the sequence that the engine ran alone; without one for each of them.
        """
        self._inbox.put(_EngineDied(culprit))

    def running(self) -> list[RunningJob]:
        """The jobs whose leases this worker holds."""
        return [job for job in tuple(self._jobs.values()) if not job.over.is_set()]

    def _run(self) -> None:
        while True:
            for item in self._next_items():
                if item is None:
                    self._release(self._jobs.values())
                    return
                self._handle(item)
            self._flush_due()

    def _next_items(self) -> list[_Item | None]:
        """Wait for an item, or until a flush is due; then everything that has come in."""
        items: list[_Item | None] = []
        try:
            items.append(self._inbox.get(timeout=self._until_due()))
            while True:
                items.append(self._inbox.get_nowait())
        except queue.Empty:
            return items

    def _until_due(self) -> float | None:
        """Seconds until something is to be sent; None where there is nothing."""
        dirty = self._dirty()
        if not dirty:
            return None
        soon = any(job.followed or job.urgent for job in dirty)
        return max(0.0, (self._next_flush if soon else self._next_whole_flush) - time.monotonic())

    @property
    def _next_flush(self) -> float:
        return self._last_flush + self._flush_interval_s

    @property
    def _next_whole_flush(self) -> float:
        return self._last_whole_flush + UNREAD_INTERVALS * self._flush_interval_s

    def _dirty(self) -> list[RunningJob]:
        return [job for job in self._jobs.values() if job.dirty]

    def _handle(self, item: _Item) -> None:
        if isinstance(item, _Adopt):
            for job in [job for job in self._jobs.values() if job.job_id == item.job.job_id]:
                self._forget(job, "superseded")
            self._jobs[item.job.sequence_id] = item.job
        elif isinstance(item, _HandBack):
            self._release(job for job in self._jobs.values() if job.sequence_id == item.sequence_id)
        elif isinstance(item, _EngineDied):
            self._release(
                self._jobs.values(), counts_loss=lambda job: item.culprit is None or job.sequence_id == item.culprit
            )
        elif isinstance(item, _Drop):
            if (dropped := self._jobs.get(item.sequence_id)) is not None:
                self._forget(dropped, "lease_lost")
        elif isinstance(item, _CancelHeard):
            for job in self._jobs.values():
                # The bell rings at each call; the first one counts.
                if job.job_id == item.job_id and job.tokens_at_cancel is None:
                    job.tokens_at_cancel = len(job.token_ids)
        else:
            for update in item:
                self._extend(update)

    def _extend(self, update: Update) -> None:
        job = self._jobs.get(update.id)
        # Otherwise the engine sent it before it heard that the sequence is no longer wanted.
        if job is None or job.finish is not None:
            return
        self.tokens_decoded += len(update.tokens)
        job.extend(update)
        if job.finish is not None and update.finish is None:
            self._abort(job.sequence_id)

    def _flush_due(self) -> None:
        """Send what is due."""
        dirty = self._dirty()
        now = time.monotonic()
        if now >= self._next_whole_flush:
            self._last_whole_flush = self._last_flush = now
            self._flush(dirty)
        elif now >= self._next_flush:
            self._last_flush = now
            self._flush([job for job in dirty if job.followed or job.urgent])
        else:
            self._flush([job for job in dirty if job.urgent])

    def _flush(self, dirty: list[RunningJob]) -> None:
        """Send everything that Redis lacks of some jobs, in one pipeline."""
        if not dirty:
            return
        batch = [job.operation() for job in dirty]
        replies = self._insist(lambda: self._store.flush(batch))
        if replies is None:
            return
        for job, reply in zip(dirty, replies, strict=True):
            self._settle(job, reply)

    def _settle(self, job: RunningJob, reply: FlushReply) -> None:
        if reply.fenced:
            self._forget(job, "fenced")
        elif reply.gap:
            # Redis has less than it confirmed: it lost its last moments. Send from where its log ends.
            log.warning("log_behind", job_id=job.job_id, logged=reply.length, expected=job.logged)
            job.logged = reply.length
        elif job.finish is not None:
            del self._jobs[job.sequence_id]
            job.over.set()
            log.info("job_finished", job_id=job.job_id, reason=job.finish.value, tokens=len(job.token_ids))
        else:
            job.confirm(reply.length)
            job.followed = reply.has_subscribers
            if reply.cancel_requested:
                self._abort(job.sequence_id)

    def _release(
        self, jobs: Iterable[RunningJob], *, counts_loss: Callable[[RunningJob], bool] = lambda _: False
    ) -> None:
        jobs = list(jobs)
        self._flush(self._dirty())
        for job in jobs:
            if job.over.is_set():
                continue
            release = partial(self._store.release, job.job_id, job.attempt, count_loss=counts_loss(job))
            # Without Redis its lease will run out.
            self._forget(job, "abandoned" if self._insist(release) is None else "handed_back")

    def _insist(self, call: Callable[[], T]) -> T | None:
        """`call`, again and again while Redis is away. None where the worker stops: then one try must do."""
        while True:
            try:
                return call()
            except RedisError as error:
                log.warning("redis_away", error=str(error), running=len(self._jobs))
                if self._stopping.wait(RETRY_S):
                    return None

    def _forget(self, job: RunningJob, why: str) -> None:
        log.info("job_left", job_id=job.job_id, why=why)
        del self._jobs[job.sequence_id]
        self._abort(job.sequence_id)
        job.over.set()
