"""Admission by KV memory: reservations in order of arrival, one suspect at a time, and removal while they wait."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator

import pytest

from worker.engine.kv.budget import BLOCK_TOKENS, KvBudget
from worker.jobs.kv_admission import AdmissionClosedError, KvAdmission, Reservation, ReservationRemovedError

DEADLINE_S = 10.0
#: How long a test waits to see that nothing happens.
QUIET_S = 0.05
#: Blocks of KV memory.
BLOCKS = 4


class Jobs:
    """An admission with four blocks of memory, and a thread for each job."""

    def __init__(self) -> None:
        self.budget = KvBudget(BLOCKS * BLOCK_TOKENS)
        self.admission = KvAdmission(self.budget)
        #: Of the jobs that hold memory.
        self.reservations: dict[str, Reservation] = {}
        self._events: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._ends: dict[str, threading.Event] = {}
        self._threads: dict[str, threading.Thread] = {}

    def start(self, name: str, blocks: int, *, suspect: bool = False) -> None:
        """Start a job that is admitted at once."""
        self._start(name, blocks, suspect)
        assert self.next() == f"{name} admitted"

    def start_waiting(self, name: str, blocks: int, *, suspect: bool = False) -> None:
        """Start a job that is not admitted at once, and return when it waits."""
        before = self.admission.waiting
        self._start(name, blocks, suspect)
        deadline = time.monotonic() + DEADLINE_S
        while self.admission.waiting == before:
            assert time.monotonic() < deadline, f"{name} does not wait"
            time.sleep(0.001)
        assert self._events.empty()

    def end(self, name: str) -> None:
        """End a job, which releases its memory."""
        self._ends[name].set()
        self._threads[name].join(DEADLINE_S)
        assert not self._threads[name].is_alive()

    def next(self) -> str:
        """The next event."""
        return self._events.get(timeout=DEADLINE_S)

    def waiting(self) -> list[str]:
        """The jobs that wait, when all that can be admitted have had the time for it."""
        with pytest.raises(queue.Empty):
            self._events.get(timeout=QUIET_S)
        return [reservation.job_id for reservation in self.admission.waiting]

    def close(self) -> None:
        self.admission.close()
        for name in self._threads:
            self.end(name)

    def _start(self, name: str, blocks: int, suspect: bool) -> None:
        self._ends[name] = threading.Event()
        self._threads[name] = threading.Thread(target=self._run, args=(name, blocks, suspect))
        self._threads[name].start()

    def _run(self, name: str, blocks: int, suspect: bool) -> None:
        try:
            with self.admission.reserve(
                blocks * BLOCK_TOKENS - 1, 1, job_id=name, suspect=suspect
            ) as self.reservations[name]:
                self._events.put(f"{name} admitted")
                self._ends[name].wait(DEADLINE_S)
        except AdmissionClosedError:
            self._events.put(f"{name} refused")
        except ReservationRemovedError:
            self._events.put(f"{name} removed")


@pytest.fixture
def jobs() -> Iterator[Jobs]:
    jobs = Jobs()
    yield jobs
    jobs.close()


def test_a_job_is_admitted_if_its_memory_is_free_and_releases_it_at_its_end(jobs: Jobs) -> None:
    jobs.start("first", 3)
    assert jobs.budget.free == BLOCK_TOKENS
    jobs.start("second", 1)
    assert jobs.budget.free == 0
    jobs.end("first")
    jobs.end("second")
    assert jobs.budget.free == BLOCKS * BLOCK_TOKENS


def test_a_small_job_does_not_overtake_a_large_one(jobs: Jobs) -> None:
    jobs.start("early", 3)
    jobs.start_waiting("large", 4)
    jobs.start_waiting("small", 1)
    jobs.end("early")
    assert jobs.next() == "large admitted"
    jobs.end("large")
    assert jobs.next() == "small admitted"


def test_the_end_of_one_job_admits_all_that_then_fit(jobs: Jobs) -> None:
    jobs.start("early", 4)
    jobs.start_waiting("second", 2)
    jobs.start_waiting("third", 2)
    jobs.end("early")
    assert jobs.next() == "second admitted"
    assert jobs.next() == "third admitted"


def test_close_refuses_waiting_and_later_jobs_and_admitted_jobs_continue(jobs: Jobs) -> None:
    jobs.start("admitted", 4)
    jobs.start_waiting("waiting", 1)
    jobs.admission.close()
    assert jobs.next() == "waiting refused"
    with pytest.raises(AdmissionClosedError), jobs.admission.reserve(1, 1, job_id="late"):
        pytest.fail("the admission is closed")
    assert jobs.budget.free == 0
    jobs.end("admitted")
    assert jobs.budget.free == BLOCKS * BLOCK_TOKENS


def test_memory_is_also_released_if_the_job_raises(jobs: Jobs) -> None:
    with pytest.raises(RuntimeError, match="broke"), jobs.admission.reserve(1, 1, job_id="broken"):
        raise RuntimeError("broke")
    assert jobs.budget.free == BLOCKS * BLOCK_TOKENS


def test_no_job_is_admitted_after_a_suspect_until_it_is_cleared(jobs: Jobs) -> None:
    jobs.start("other", 1)
    jobs.start("suspect", 1, suspect=True)
    jobs.start_waiting("second", 1)
    jobs.start_waiting("third", 1)
    assert jobs.waiting() == ["second", "third"]
    jobs.reservations["suspect"].clear()
    assert jobs.next() == "second admitted"
    assert jobs.next() == "third admitted"


def test_suspects_are_admitted_one_after_the_other(jobs: Jobs) -> None:
    jobs.start("first", 1, suspect=True)
    jobs.start_waiting("second", 1, suspect=True)
    jobs.start_waiting("innocent", 1)
    jobs.reservations["first"].clear()
    assert jobs.next() == "second admitted"
    assert jobs.waiting() == ["innocent"]
    jobs.reservations["second"].clear()
    assert jobs.next() == "innocent admitted"


def test_the_end_of_a_suspect_admits_others(jobs: Jobs) -> None:
    jobs.start("suspect", 1, suspect=True)
    jobs.start_waiting("second", 1)
    jobs.end("suspect")
    assert jobs.next() == "second admitted"


def test_clearing_a_job_that_is_not_a_suspect_or_is_already_cleared_does_nothing(jobs: Jobs) -> None:
    jobs.start("other", 1)
    jobs.start("first", 1, suspect=True)
    jobs.start_waiting("second", 1, suspect=True)
    jobs.reservations["other"].clear()
    assert jobs.waiting() == ["second"]
    jobs.reservations["first"].clear()
    assert jobs.next() == "second admitted"
    jobs.start_waiting("third", 1)
    jobs.reservations["first"].clear()
    assert jobs.waiting() == ["third"]


def test_a_suspect_waits_for_its_memory_and_is_not_overtaken(jobs: Jobs) -> None:
    jobs.start("early", 3)
    jobs.start_waiting("suspect", 2, suspect=True)
    jobs.start_waiting("small", 1)
    assert jobs.waiting() == ["suspect", "small"]
    jobs.end("early")
    assert jobs.next() == "suspect admitted"
    assert jobs.waiting() == ["small"]


def test_close_refuses_a_job_that_waits_for_a_suspect(jobs: Jobs) -> None:
    jobs.start("suspect", 1, suspect=True)
    jobs.start_waiting("second", 1)
    jobs.admission.close()
    assert jobs.next() == "second refused"


def test_a_removed_job_reserves_nothing_and_the_next_one_is_admitted(jobs: Jobs) -> None:
    jobs.start("early", 3)
    jobs.start_waiting("large", 4)
    jobs.start_waiting("small", 1)
    jobs.admission.remove(jobs.admission.waiting[:1])
    assert {jobs.next(), jobs.next()} == {"large removed", "small admitted"}
    assert jobs.budget.free == 0


def test_removing_an_admitted_job_does_nothing(jobs: Jobs) -> None:
    jobs.start("admitted", 3)
    jobs.admission.remove([jobs.reservations["admitted"]])
    assert jobs.budget.free == BLOCK_TOKENS
    jobs.end("admitted")
    assert jobs.budget.free == BLOCKS * BLOCK_TOKENS
