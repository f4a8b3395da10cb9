"""The lease keeper: which of its steps a failed step stops."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any, cast

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError, ResponseError

from tasks.errors import QueueError, WorkerReplacedError
from tasks.store.reaped import Reaped
from tasks.store.worker_store import Renewal, WorkerStore
from tasks.worker_info import WorkerInfo
from worker.jobs.job_runner import JobRunner
from worker.jobs.lease_keeper import LeaseKeeper
from worker.jobs.publisher import Publisher

DEADLINE_S = 10.0


class Calls(WorkerStore):
    """Records the calls. `errors` are raised by the methods that they name."""

    def __init__(self, errors: Mapping[str, Exception]) -> None:
        self.calls: list[str] = []
        self._errors = errors
        self._changed = threading.Condition()

    def call(self, name: str) -> None:
        with self._changed:
            self.calls.append(name)
            self._changed.notify_all()
        if name in self._errors:
            raise self._errors[name]

    def heartbeat(self, info: WorkerInfo) -> bool:
        self.call("heartbeat")
        return True

    def renew(self, leases: Mapping[str, int]) -> Renewal:
        self.call("renew")
        return Renewal((), ())

    def reap(self) -> Reaped:
        self.call("reap")
        return Reaped(0, 0, 0, 0, 0, 0)

    def wait_for_two_heartbeats(self) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: self.calls.count("heartbeat") >= 2, DEADLINE_S)


class Runner:
    def __init__(self, store: Calls) -> None:
        self._store = store

    def remove_ended(self) -> None:
        self._store.call("remove_ended")


class Job:
    job_id, sequence_id, attempt = "job_1", "job_1/1", 1


class OneJob:
    def running(self) -> Sequence[Any]:
        return [Job]


def keeper(store: Calls, conflicts: list[str]) -> LeaseKeeper:
    return LeaseKeeper(
        store,
        cast(Publisher, OneJob()),
        cast(JobRunner, Runner(store)),
        info=lambda: cast(WorkerInfo, None),
        before_heartbeat=lambda: None,
        keep_tokenizer=lambda: store.call("keep_tokenizer"),
        on_conflict=conflicts.append,
        period_s=0.001,
    )


STEPS = ["heartbeat", "renew", "remove_ended", "reap", "keep_tokenizer"]


@pytest.mark.parametrize("failing", STEPS)
def test_a_step_whose_data_is_damaged_stops_no_other_step(failing: str) -> None:
    store = Calls({failing: ResponseError("WRONGTYPE Operation against a key holding the wrong kind of value")})
    running = keeper(store, [])
    running.start()
    store.wait_for_two_heartbeats()
    running.stop()
    assert store.calls[:6] == [*STEPS, "heartbeat"]


@pytest.mark.parametrize("error", [RedisConnectionError("away"), ResponseError("OOM command not allowed")])
def test_while_redis_is_away_a_round_ends_at_the_first_failure(error: RedisError) -> None:
    store = Calls({"heartbeat": error})
    running = keeper(store, [])
    running.start()
    store.wait_for_two_heartbeats()
    running.stop()
    assert set(store.calls) == {"heartbeat"}


def test_a_worker_whose_name_was_taken_stops() -> None:
    conflicts: list[str] = []
    error: QueueError = WorkerReplacedError("worker@host")
    store = Calls({"heartbeat": error})
    running = keeper(store, conflicts)
    running.start()
    running._thread.join(DEADLINE_S)
    assert conflicts == [str(error)]
    assert store.calls == ["heartbeat"]
