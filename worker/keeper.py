"""The keeper: tells Redis each second that this worker lives, renews its leases, and hears who wants out."""

from __future__ import annotations

import threading
from collections.abc import Callable

import structlog
from redis.exceptions import RedisError

from tasks.errors import CardConflictError
from tasks.worker_info import WorkerInfo
from tasks.worker_store import WorkerStore
from worker.publisher import Publisher

log = structlog.get_logger(__name__)


class Keeper:
    """A thread for the heartbeat and the leases."""

    def __init__(
        self,
        store: WorkerStore,
        publisher: Publisher,
        *,
        info: Callable[[], WorkerInfo],
        abort: Callable[[str], None],
        on_alive: Callable[[], None],
        on_conflict: Callable[[str], None],
        period_s: float,
    ) -> None:
        """`on_alive` is called before each heartbeat, whether Redis is there or not. `on_conflict` is called, with a
        message, where other weights took the checkpoint's name while this worker was silent."""
        self._store = store
        self._publisher = publisher
        self._info = info
        self._abort = abort
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
            except CardConflictError as error:
                self._on_conflict(str(error))
                return

    def beat(self) -> None:
        """One heartbeat and one renewal. Raises RedisError and CardConflictError."""
        info = self._info()
        self._store.heartbeat(info)
        leases = self._publisher.leases()
        if not leases:
            return
        renewal = self._store.renew(leases)
        for job_id in renewal.lost:
            self._publisher.drop(job_id)
        for job_id in renewal.cancelled:
            self._abort(job_id)
