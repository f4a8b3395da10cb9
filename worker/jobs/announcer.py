"""Shows in the registry that a worker loads its checkpoint, before it can be registered with the card."""

from __future__ import annotations

import threading
from types import TracebackType
from typing import Self

import structlog
from redis.exceptions import RedisError

from tasks.store.worker_store import WorkerStore
from tasks.worker_info import WorkerInfo

log = structlog.get_logger(__name__)


class Announcer:
    """A thread that sends heartbeats of a worker with the state `starting`, inside a `with` block."""

    def __init__(self, store: WorkerStore, info: WorkerInfo, *, period_s: float) -> None:
        self._store = store
        self._info = info
        self._period_s = period_s
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="announcer", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stopping.set()
        self._thread.join()

    def _run(self) -> None:
        while True:
            try:
                self._store.announce(self._info)
            except RedisError as error:
                # Nothing depends on it: the worker registers when the checkpoint is loaded.
                log.warning("announce_failed", error=str(error))
            if self._stopping.wait(self._period_s):
                return
