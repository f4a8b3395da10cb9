"""A worker that loads is announced again and again, also while Redis is away for a moment, and no longer afterwards."""

from __future__ import annotations

import threading

from redis.exceptions import ConnectionError as RedisConnectionError

from tasks.store.worker_store import WorkerStore
from tasks.worker_info import WorkerInfo
from worker.jobs.announcer import Announcer

DEADLINE_S = 10.0
INFO = WorkerInfo(name="d4@host", incarnation="1", checkpoint="d4", device="auto", slots=1, pid=1, host="host")


class Store(WorkerStore):
    """Fails at the first call."""

    def __init__(self) -> None:
        self.announced: list[WorkerInfo] = []
        self.third = threading.Event()

    def announce(self, info: WorkerInfo) -> None:
        self.announced.append(info)
        if len(self.announced) == 1:
            raise RedisConnectionError("away")
        if len(self.announced) == 3:
            self.third.set()


def test_it_repeats_until_the_block_ends() -> None:
    store = Store()
    with Announcer(store, INFO, period_s=0.001):
        assert store.third.wait(DEADLINE_S)
    count = len(store.announced)
    assert set(store.announced) == {INFO}
    assert not any(thread.name == "announcer" for thread in threading.enumerate())
    assert len(store.announced) == count
