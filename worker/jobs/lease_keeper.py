"""The keeper: tells Redis each second that this worker lives, renews its leases, hears who wants out or waits in vain,
and calls the reaper."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import asdict

import structlog
from redis.exceptions import RedisError

from tasks.errors import CardConflictError, SchemaError
from tasks.store.worker_store import WorkerStore
from tasks.worker_info import WorkerInfo
from worker.jobs.publisher import Publisher

log = structlog.get_logger(__name__)


class Keeper:
    """A thread for the heartbeat and the leases."""

    def __init__(
        self,
        store: WorkerStore,
        publisher: Publisher,
        *,
        info: Callable[[], WorkerInfo],
        withdraw_over: Callable[[], None],
        on_alive: Callable[[], None],
        on_conflict: Callable[[str], None],
        period_s: float,
    ) -> None:
        """`withdraw_over` calls off the waiting for jobs that need not run any more. `on_alive` is called before each
        heartbeat, whether Redis is there or not. `on_conflict` is called, with a message, where other weights took the
        checkpoint's name, or another version the Redis, while this worker was silent."""
        self._store = store
        self._publisher = publisher
        self._info = info
        self._withdraw_over = withdraw_over
        self._on_alive = on_alive
        self._on_conflict = on_conflict
        self._period_s = period_s
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="keeper", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread."""
        self._stopping.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopping.wait(self._period_s):
            self._on_alive()
            try:
                self.beat()
            except RedisError as error:
                log.warning("heartbeat_failed", error=str(error))
            except (CardConflictError, SchemaError) as error:
                self._on_conflict(str(error))
                return

    def beat(self) -> None:
        """A heartbeat, a renewal, a look at the line, then the reaper.

        Raises RedisError, CardConflictError and SchemaError.
        """
        if not self._store.heartbeat(self._info()):
            log.error("redis_lost_its_data", what="every job is gone; registered again")
        self._renew()
        self._withdraw_over()
        if reaped := self._store.reap():
            log.info("reaped", **asdict(reaped))

    def _renew(self) -> None:
        running = {job.job_id: job for job in self._publisher.running()}
        if not running:
            return
        renewal = self._store.renew({job_id: job.attempt for job_id, job in running.items()})
        for job_id in renewal.lost:
            self._publisher.drop(running[job_id].sequence_id)
        for job_id in renewal.cancelled:
            self._publisher.cancel(job_id)
