"""The publisher: brings what the engine decoded into the jobs' logs, all jobs in one pipeline a flush."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import structlog
from redis.exceptions import RedisError

from tasks.worker_store import FlushReply, WorkerStore
from worker.engine.update import Update
from worker.running import RunningJob

log = structlog.get_logger(__name__)

#: Wait between two tries of a flush while Redis is away, in seconds.
RETRY_S = 0.2


@dataclass(frozen=True, slots=True)
class _Adopt:
    job: RunningJob


@dataclass(frozen=True, slots=True)
class _HandOver:
    #: None: every running job.
    job_id: str | None
    count_loss: bool
    done: threading.Event


@dataclass(frozen=True, slots=True)
class _Drop:
    job_id: str


_Item = _Adopt | _HandOver | _Drop | Sequence[Update] | None


class Publisher:
    """One thread that owns every running job of this worker after its claim.

    The first token of a job and its end are sent at once, everything between at most every `flush_interval_s`. A flush
    that Redis did not confirm is sent again; the scripts make that harmless.
    """

    def __init__(self, store: WorkerStore, *, flush_interval_s: float, abort: Callable[[str], None]) -> None:
        """`abort` tells the engine to stop a sequence."""
        self._store = store
        self._flush_interval_s = flush_interval_s
        self._abort = abort
        self._inbox: queue.SimpleQueue[_Item] = queue.SimpleQueue()
        self._jobs: dict[str, RunningJob] = {}
        self._last_flush = 0.0
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="publisher", daemon=True)
        #: Tokens published since the start, for the worker's speed.
        self.tokens_published = 0

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Flush once more and end the thread."""
        self._stopping.set()
        self._inbox.put(None)
        self._thread.join()

    def adopt(self, job: RunningJob) -> None:
        """Take over a claimed job. Call it before the engine hears of the sequence."""
        self._inbox.put(_Adopt(job))

    def take(self, updates: Sequence[Update]) -> None:
        """Hand over what the engine decoded in one step."""
        self._inbox.put(updates)

    def drop(self, job_id: str) -> None:
        """Forget a job that is no longer ours, and stop its sequence. Nothing more is written for it."""
        self._inbox.put(_Drop(job_id))

    def hand_over(self, job_id: str | None = None, *, count_loss: bool) -> threading.Event:
        """Flush and give one job, or every running job, back to the queue. The event is set when that is done."""
        done = threading.Event()
        self._inbox.put(_HandOver(job_id, count_loss, done))
        return done

    def leases(self) -> dict[str, int]:
        """Attempt of each running job by its id."""
        return {job.job_id: job.attempt for job in tuple(self._jobs.values()) if not job.over.is_set()}

    def _run(self) -> None:
        while True:
            for item in self._next_items():
                if item is None:
                    self._flush()
                    return
                self._handle(item)
            jobs = tuple(self._jobs.values())
            if any(job.urgent for job in jobs) or (self._due() and any(job.dirty for job in jobs)):
                self._flush()

    def _next_items(self) -> list[_Item]:
        """Wait for an item, or until a flush is due; then everything that has come in."""
        items: list[_Item] = []
        pending = any(job.dirty for job in self._jobs.values())
        timeout = max(0.0, self._last_flush + self._flush_interval_s - time.monotonic()) if pending else None
        try:
            items.append(self._inbox.get(timeout=timeout))
            while True:
                items.append(self._inbox.get_nowait())
        except queue.Empty:
            return items

    def _due(self) -> bool:
        return time.monotonic() >= self._last_flush + self._flush_interval_s

    def _handle(self, item: _Adopt | _HandOver | _Drop | Sequence[Update]) -> None:
        if isinstance(item, _Adopt):
            self._jobs[item.job.job_id] = item.job
        elif isinstance(item, _HandOver):
            self._release(item.job_id, item.count_loss)
            item.done.set()
        elif isinstance(item, _Drop):
            self._forget(item.job_id, "lease_lost")
        else:
            for update in item:
                job = self._jobs.get(update.id)
                # An update of a job that was handed over or dropped is one that the engine sent before it heard of it.
                if job is None or job.finish is not None:
                    continue
                known = len(job.token_ids)
                job.extend(update)
                self.tokens_published += len(job.token_ids) - known
                if job.finish is not None and update.finish is None:
                    self._abort(job.job_id)

    def _flush(self) -> None:
        """Send everything that Redis lacks, in one pipeline; again and again while Redis is away."""
        while dirty := [job for job in self._jobs.values() if job.dirty]:
            try:
                replies = self._store.flush([job.operation() for job in dirty])
            except RedisError as error:
                log.warning("flush_failed", error=str(error), jobs=len(dirty))
                if self._stopping.wait(RETRY_S):
                    return
                continue
            self._last_flush = time.monotonic()
            for job, reply in zip(dirty, replies, strict=True):
                self._settle(job, reply)
            return

    def _settle(self, job: RunningJob, reply: FlushReply) -> None:
        if reply.fenced:
            self._forget(job.job_id, "fenced")
        elif reply.gap:
            # Redis has less than it confirmed: it lost its last moments. Send from where its log ends.
            log.warning("log_behind", job_id=job.job_id, logged=reply.length, expected=job.logged)
            job.logged = reply.length
        elif job.finish is not None:
            del self._jobs[job.job_id]
            job.over.set()
            log.info("job_finished", job_id=job.job_id, reason=job.finish.value, tokens=len(job.token_ids))
        else:
            job.logged = reply.length
            if reply.cancel_requested:
                self._abort(job.job_id)

    def _release(self, job_id: str | None, count_loss: bool) -> None:
        self._flush()
        for job in [job for job in self._jobs.values() if job_id in (None, job.job_id)]:
            try:
                self._store.release(job.job_id, job.attempt, count_loss=count_loss)
            except RedisError as error:
                log.error("release_failed", job_id=job.job_id, error=str(error))
            self._forget(job.job_id, "handed_over")

    def _forget(self, job_id: str, why: str) -> None:
        job = self._jobs.pop(job_id, None)
        if job is None:
            return
        log.info("job_left", job_id=job_id, why=why)
        self._abort(job_id)
        job.over.set()
