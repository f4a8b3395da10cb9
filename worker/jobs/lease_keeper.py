"""The lease keeper: once per period it sends the heartbeat, renews the leases, and calls the reaper.

It also stops jobs whose lease is lost or that were cancelled, and removes ended jobs that wait for KV memory.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

import structlog
from redis.exceptions import RedisError

from tasks.errors import CardConflictError, SchemaError, WorkerReplacedError
from tasks.redis_client.errors import describe, is_permanent
from tasks.store.worker_store import WorkerStore
from tasks.worker_info import WorkerInfo
from worker.jobs.job_runner import JobRunner
from worker.jobs.publisher import Publisher

log = structlog.get_logger(__name__)


class LeaseKeeper:
    """A thread for the heartbeat and the leases."""

    def __init__(
        self,
        store: WorkerStore,
        publisher: Publisher,
        runner: JobRunner,
        *,
        info: Callable[[], WorkerInfo],
        before_heartbeat: Callable[[], None],
        keep_tokenizer: Callable[[], None],
        on_conflict: Callable[[str], None],
        period_s: float,
    ) -> None:
        """All callables are called in the thread. `info` returns the content of the heartbeat.

        `before_heartbeat` is called each time, even while Redis is away. `keep_tokenizer` keeps what front ends need of
        the tokenizer in Redis. `on_conflict` is called, with a message for
        people, if this worker sent no heartbeat for so long that other weights took its checkpoint's name, if another
        worker registered under its name, or if another version of Celeriac took over the Redis. The thread then ends.
        """
        self._store = store
        self._publisher = publisher
        self._runner = runner
        self._info = info
        self._before_heartbeat = before_heartbeat
        self._keep_tokenizer = keep_tokenizer
        self._on_conflict = on_conflict
        self._period_s = period_s
        self._stopping = threading.Event()
        #: Set to begin the next round at once.
        self._wake = threading.Event()
        self._thread = threading.Thread(target=self._run, name="lease-keeper", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Stop the thread and wait for its end."""
        self._stopping.set()
        self._wake.set()
        self._thread.join()

    def beat_now(self) -> None:
        """Send a heartbeat without waiting for the period to end, because the worker's state has changed."""
        self._wake.set()

    def _run(self) -> None:
        while True:
            self._wake.wait(self._period_s)
            self._wake.clear()
            if self._stopping.is_set():
                return
            self._before_heartbeat()
            try:
                self._beat()
            except (CardConflictError, SchemaError, WorkerReplacedError) as error:
                self._on_conflict(str(error))
                return

    def _beat(self) -> None:
        """One round. Raises CardConflictError, SchemaError and WorkerReplacedError."""
        steps = {
            "send_heartbeat": self._send_heartbeat,
            "renew_leases": self._renew_leases,
            "remove_ended": self._runner.remove_ended,
            "reap": self._reap,
            "keep_tokenizer": self._keep_tokenizer,
        }
        for name, step in steps.items():
            try:
                step()
            except RedisError as error:
                log.warning("heartbeat_failed", step=name, error=describe(error))
                # While Redis is away, each further step would wait for a timeout.
                if not is_permanent(error):
                    return

    def _send_heartbeat(self) -> None:
        if not self._store.heartbeat(self._info()):
            log.error("redis_lost_its_data", what="every job is gone; this worker registered again")

    def _renew_leases(self) -> None:
        running = {job.job_id: job for job in self._publisher.running()}
        if not running:
            return
        renewal = self._store.renew({job_id: job.attempt for job_id, job in running.items()})
        for job_id in renewal.lost:
            self._publisher.lease_lost(running[job_id].sequence_id)
        for job_id in renewal.cancelled:
            self._publisher.cancel(job_id)

    def _reap(self) -> None:
        self._store.reap().log(log)
