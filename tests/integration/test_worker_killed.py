"""Workers that are killed while they decode: real processes, a real checkpoint, and the text of an undisturbed run."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tasks import keys
from tasks.card import Card
from tasks.generation import Generation
from tasks.job import Job, Status
from tasks.token_log import Entry
from tests.integration.conftest import QueueWorld
from tests.integration.stack import SHIPPED, START_S, Process, Stack, until

pytestmark = pytest.mark.anyio

#: Times of the workers, much shorter than their defaults.
QUICK = {"lease_s": "1", "worker_ttl_s": "1", "heartbeat_s": "0.2", "reap_every_s": "0.2"}
#: Lease and sign of life together, and time for a busy machine, in seconds.
TAKEN_OVER_S = 15.0
TOKENS = 1500
#: Tokens that a job has when its worker is killed, at least.
BEGUN = 100


@pytest.fixture
def stack(redis_url: str, tmp_path: Path) -> Iterator[Stack]:
    stack = Stack(redis_url, tmp_path)
    yield stack
    stack.close()


def two_workers(queue: QueueWorld, stack: Stack) -> dict[str, Process]:
    """Two live workers by the first part of their names."""
    workers = {name: stack.worker(worker_name=name, slots="2", wait=False, **QUICK) for name in ("one", "two")}
    until(lambda: queue.redis.zcard(keys.workers(SHIPPED)) == 2, "the start of two workers", timeout_s=START_S)
    return workers


async def card_of(queue: QueueWorld) -> Card:
    """The card that the workers published."""
    card = await queue.jobs.card(SHIPPED)
    assert card is not None
    return card


async def submit(queue: QueueWorld, *, seed: int = 7, max_tokens: int = TOKENS) -> str:
    """Id of a new job that takes a while."""
    generation = Generation(prompt="123+456=", max_tokens=max_tokens, temperature=0.8, seed=seed, ignore_eos=True)
    return await queue.submit(checkpoint=SHIPPED, digest=(await card_of(queue)).digest, generation=generation)


def read(queue: QueueWorld, job_id: str) -> Job:
    job = queue.workers.read(job_id)
    assert job is not None
    return job


def when_finished(queue: QueueWorld, job_id: str) -> Job:
    """The job once it is over."""

    def finished() -> Job | None:
        job = read(queue, job_id)
        return job if job.status.terminal else None

    return until(finished, f"the end of {job_id}", timeout_s=120)


def when_begun(queue: QueueWorld, job_id: str) -> Job:
    """The job once it has some tokens, still running."""

    def begun() -> Job | None:
        job = read(queue, job_id)
        return job if job.tokens >= BEGUN else None

    job = until(begun, f"{BEGUN} tokens of {job_id}", timeout_s=60)
    assert job.status is Status.RUNNING
    return job


def is_unbroken(entries: Sequence[Entry]) -> bool:
    """Whether each entry of a log begins where the one before it ends."""
    ends = [0, *(entry.after for entry in entries)]
    return all(entry.before == end for entry, end in zip(entries, ends, strict=False))


async def test_another_worker_goes_on_at_the_next_token(queue: QueueWorld, stack: Stack) -> None:
    workers = two_workers(queue, stack)
    undisturbed = when_finished(queue, await submit(queue))
    assert (undisturbed.status, undisturbed.attempt, undisturbed.tokens) == (Status.SUCCEEDED, 1, TOKENS)

    job_id = await submit(queue)
    holder = when_begun(queue, job_id).worker
    assert holder is not None
    workers[holder.partition("@")[0]].signal(signal.SIGKILL)
    until(lambda: read(queue, job_id).attempt == 2, "a second attempt", timeout_s=TAKEN_OVER_S)

    job = when_finished(queue, job_id)
    assert (job.status, job.attempt, job.tokens) == (Status.SUCCEEDED, 2, TOKENS)
    assert job.worker not in (None, holder)
    assert job.completion == undisturbed.completion
    # The tokens that came since have cleared the count that fails a job.
    assert (job.losses, job.losses_in_a_row) == (1, 0)
    assert BEGUN <= job.resumed_tokens < TOKENS
    log = await queue.jobs.log(job_id)
    assert is_unbroken(log)
    assert [(entry.after, entry.attempt) for entry in log if entry.attempt is not None] == [(job.resumed_tokens, 2)]
    assert "".join(entry.text for entry in log) == undisturbed.completion


async def test_messages_that_the_dead_worker_had_taken_are_not_lost(queue: QueueWorld, stack: Stack) -> None:
    workers = two_workers(queue, stack)
    jobs = [await submit(queue, seed=seed, max_tokens=400) for seed in range(10)]
    holder = when_begun(queue, jobs[0]).worker
    assert holder is not None
    workers[holder.partition("@")[0]].signal(signal.SIGKILL)
    finished = [when_finished(queue, job_id) for job_id in jobs]
    assert [(job.status, job.tokens) for job in finished] == [(Status.SUCCEEDED, 400)] * len(jobs)
    assert max(job.attempt for job in finished) == 2
    for job in finished:
        log = await queue.jobs.log(job.id)
        assert is_unbroken(log)
        assert "".join(entry.text for entry in log) == job.completion


async def test_a_restarted_worker_goes_on_without_waiting_for_its_old_leases(queue: QueueWorld, stack: Stack) -> None:
    def start() -> Process:
        settings = {**QUICK, "lease_s": "600", "worker_ttl_s": "600", "worker_name": "one", "slots": "1"}
        return stack.run("worker", sys.executable, "-m", "celeriac", "worker", "--checkpoint", SHIPPED, **settings)

    first = start()
    until(lambda: queue.redis.zcard(keys.workers(SHIPPED)), "the start of a worker", timeout_s=START_S)
    job_id, waiting = await submit(queue), await submit(queue, max_tokens=5)
    when_begun(queue, job_id)
    first.signal(signal.SIGKILL)
    first.wait()
    start()
    job = when_finished(queue, job_id)
    assert (job.status, job.attempt, job.tokens) == (Status.SUCCEEDED, 2, TOKENS)
    assert job.resumed_tokens >= BEGUN
    assert when_finished(queue, waiting).status is Status.SUCCEEDED
