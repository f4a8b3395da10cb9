"""The publisher: writes what the engine decoded to the logs of the jobs, all jobs in one pipeline per flush."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import structlog
from redis.exceptions import ResponseError

from tasks.store.job_writes import FlushReply
from tasks.store.worker_store import WorkerStore
from worker.engine_process.messages import Update
from worker.jobs.retry import RetryStoppedError, retry_while_redis_is_away
from worker.jobs.running_job import RunningJob

log = structlog.get_logger(__name__)

T = TypeVar("T")

#: Wait between two calls while Redis is away, in seconds.
RETRY_S = 0.2
#: Tokens of jobs that no client streams are sent after this many flush intervals. Tokens that were not sent are lost
#: if this worker is killed, and another worker decodes them again.
UNSTREAMED_INTERVALS = 10


class PublisherStoppedError(Exception):
    """The worker stops, and the publisher takes no more jobs."""


@dataclass(frozen=True, slots=True)
class _Add:
    job: RunningJob


@dataclass(frozen=True, slots=True)
class _Release:
    sequence_id: str


@dataclass(frozen=True, slots=True)
class _EngineCrashed:
    suspect: str | None
    out_of_memory: bool


@dataclass(frozen=True, slots=True)
class _LeaseLost:
    sequence_id: str


@dataclass(frozen=True, slots=True)
class _CancelRequested:
    job_id: str


_Item = _Add | _Release | _EngineCrashed | _LeaseLost | _CancelRequested | Sequence[Update]


class Publisher:
    """One thread that owns each running job of this worker after its claim. An `EngineListener`.

    The first token of a job and its end are sent at once. Between them, tokens of a job that a client streams are sent
    every `flush_interval_s`, and those of other jobs after `UNSTREAMED_INTERVALS` such intervals. Tokens that
    Redis did not confirm are sent again; the scripts make that harmless.

    The public methods may be called from any thread. `cancel` and `running` read the jobs as they are at that moment;
    other methods put an item into the inbox, and the thread handles the items in order.
    """

    def __init__(self, store: WorkerStore, *, abort: Callable[[str], None], flush_interval_s: float) -> None:
        """`abort` makes the engine stop the sequence with this id. It may be called from any thread."""
        self._store = store
        self._abort = abort
        self._flush_interval_s = flush_interval_s
        #: None is the last item: `stop` adds it, and no job is added after it.
        self._inbox: queue.SimpleQueue[_Item | None] = queue.SimpleQueue()
        #: By sequence id.
        self._jobs: dict[str, RunningJob] = {}
        #: Monotonic time of the last flush of the streamed jobs, and of the last flush of all jobs.
        self._last_flush = 0.0
        self._last_whole_flush = 0.0
        self._stopping = threading.Event()
        #: Held by `add` and `stop`, so that None is the last item.
        self._add_lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="publisher", daemon=True)
        #: Number of tokens that the engine has decoded since the start.
        self.tokens_decoded = 0

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Flush, release every running job, and stop the thread. If Redis is away, the leases of the jobs run out."""
        with self._add_lock:
            self._stopping.set()
            self._inbox.put(None)
        self._thread.join()

    def add(self, job: RunningJob) -> None:
        """Take a claimed job. Call it before the engine gets the sequence. Raises PublisherStoppedError."""
        with self._add_lock:
            if self._stopping.is_set():
                raise PublisherStoppedError
            self._inbox.put(_Add(job))

    def engine_decoded(self, updates: Sequence[Update], /) -> None:
        """Add what the engine decoded to the jobs."""
        self._inbox.put(updates)

    def engine_crashed(self, suspect: str | None, /, *, out_of_memory: bool) -> None:
        """Flush and release every job that was added before this call.

        A loss is counted for `suspect`, the sequence that ran alone; for each of the jobs if it is None. A job that
        ends because it has too many losses has the code `out_of_memory` if that is known to be the reason.
        """
        self._inbox.put(_EngineCrashed(suspect, out_of_memory))

    def cancel(self, job_id: str) -> None:
        """Stop the sequence of a job; the engine's next report ends the job. Does nothing if no such job runs here."""
        for job in tuple(self._jobs.values()):
            if job.job_id == job_id:
                self._abort(job.sequence_id)

    def cancel_requested(self, job_id: str) -> None:
        """As `cancel`, called when a client has just requested it: record how many tokens the job has now."""
        # Tokens that the engine has reported are before this item in the inbox, so they are counted.
        self._inbox.put(_CancelRequested(job_id))
        self.cancel(job_id)
        log.info("cancel_received", job_id=job_id)

    def lease_lost(self, sequence_id: str) -> None:
        """Stop a job that is another worker's now. Nothing more is written for it."""
        self._inbox.put(_LeaseLost(sequence_id))

    def release(self, sequence_id: str) -> None:
        """Release a job that the engine did not accept."""
        self._inbox.put(_Release(sequence_id))

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
        """Wait for an item or until a flush is due. Returns all items that have arrived."""
        items: list[_Item | None] = []
        try:
            items.append(self._inbox.get(timeout=self._until_due()))
            while True:
                items.append(self._inbox.get_nowait())
        except queue.Empty:
            return items

    def _until_due(self) -> float | None:
        """Seconds until a flush is due; None if there is nothing to send."""
        dirty = self._dirty()
        if not dirty:
            return None
        soon = any(job.streamed or job.urgent for job in dirty)
        return max(0.0, (self._next_flush if soon else self._next_whole_flush) - time.monotonic())

    @property
    def _next_flush(self) -> float:
        return self._last_flush + self._flush_interval_s

    @property
    def _next_whole_flush(self) -> float:
        return self._last_whole_flush + UNSTREAMED_INTERVALS * self._flush_interval_s

    def _dirty(self) -> list[RunningJob]:
        return [job for job in self._jobs.values() if job.dirty]

    def _handle(self, item: _Item) -> None:
        if isinstance(item, _Add):
            for job in [job for job in self._jobs.values() if job.job_id == item.job.job_id]:
                self._remove(job, "superseded")
            self._jobs[item.job.sequence_id] = item.job
        elif isinstance(item, _Release):
            self._release(job for job in self._jobs.values() if job.sequence_id == item.sequence_id)
        elif isinstance(item, _EngineCrashed):
            self._release(
                self._jobs.values(),
                counts_loss=lambda job: item.suspect is None or job.sequence_id == item.suspect,
                out_of_memory=item.out_of_memory,
            )
        elif isinstance(item, _LeaseLost):
            if (lost := self._jobs.get(item.sequence_id)) is not None:
                self._remove(lost, "lease_lost")
        elif isinstance(item, _CancelRequested):
            for job in self._jobs.values():
                # Each cancel of a client sends a notification; the first one counts.
                if job.job_id == item.job_id and job.tokens_at_cancel is None:
                    job.tokens_at_cancel = len(job.token_ids)
        else:
            for update in item:
                self._extend(update)

    def _extend(self, update: Update) -> None:
        job = self._jobs.get(update.id)
        # The engine may report a sequence that was removed here, or whose text has ended, before it stops it.
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
            self._flush([job for job in dirty if job.streamed or job.urgent])
        else:
            self._flush([job for job in dirty if job.urgent])

    def _flush(self, dirty: list[RunningJob]) -> None:
        """Send everything that Redis lacks of some jobs, in one pipeline."""
        if not dirty:
            return
        batch = [job.operation() for job in dirty]
        try:
            replies = self._retry(lambda: self._store.flush(batch))
        except RetryStoppedError:
            return
        for job, reply in zip(dirty, replies, strict=True):
            self._apply(job, reply)

    def _apply(self, job: RunningJob, reply: FlushReply) -> None:
        if reply.fenced:
            self._remove(job, "fenced")
        elif reply.gap:
            # The log is shorter than Redis had confirmed: Redis lost its last writes. Send from the end of its log.
            log.warning("log_too_short", job_id=job.job_id, logged=reply.length, expected=job.logged)
            job.logged = reply.length
        elif job.finish is not None:
            del self._jobs[job.sequence_id]
            job.over.set()
            log.info(
                "job_finished",
                job_id=job.job_id,
                reason=job.finish.value,
                tokens=len(job.token_ids),
                seconds=job.seconds,
            )
        else:
            job.confirm(reply.length)
            job.streamed = reply.has_subscribers
            if reply.cancel_requested:
                self._abort(job.sequence_id)

    def _release(
        self,
        jobs: Iterable[RunningJob],
        *,
        counts_loss: Callable[[RunningJob], bool] = lambda _: False,
        out_of_memory: bool = False,
    ) -> None:
        jobs = list(jobs)
        self._flush(self._dirty())
        for job in jobs:
            if job.over.is_set():
                continue
            try:
                self._retry(
                    partial(
                        self._store.release,
                        job.job_id,
                        job.attempt,
                        count_loss=counts_loss(job),
                        out_of_memory=out_of_memory,
                    )
                )
            except RetryStoppedError:
                # Its lease will run out.
                self._remove(job, "redis_away")
            except ResponseError as error:
                # The same, and no reason to keep the other jobs.
                log.error("release_failed", job_id=job.job_id, error=str(error))
                self._remove(job, "release_failed")
            else:
                self._remove(job, "released")

    def _retry(self, call: Callable[[], T]) -> T:
        """Repeat `call` while Redis is away. Raises RetryStoppedError after one failed call if the worker stops."""
        return retry_while_redis_is_away(
            call, wait_s=RETRY_S, wait_for_stop=self._stopping.wait, running=len(self._jobs)
        )

    def _remove(self, job: RunningJob, why: str) -> None:
        """Stop the work of this worker with a job that is not finished."""
        log.info("job_removed", job_id=job.job_id, why=why)
        del self._jobs[job.sequence_id]
        # In this order: the job runner adds the request and then reads `over`. Either it reads True and aborts the
        # sequence itself, or the engine has the sequence already, and this abort ends it.
        job.over.set()
        self._abort(job.sequence_id)
