"""Reads for streams, waiters and estimates: the changes of one job, the versions of many, the load of a queue."""

from __future__ import annotations

import pytest

from tasks.errors import QueuePositionError
from tasks.estimate import QueueLoad
from tasks.generation import Generation
from tasks.job import Status
from tasks.job_id import new_job_id
from tasks.store import keys
from tasks.store.replies import JobChanges, JobVersion
from tasks.store.scripts import LIMITS
from tests.helpers.requests import make_generation
from tests.integration.conftest import QueueWorld

pytestmark = pytest.mark.anyio


async def changes_of(queue: QueueWorld, job_id: str, after: int = 0, k: int = 0) -> JobChanges:
    changes = await queue.jobs.changes(job_id, after, k)
    assert changes is not None
    return changes


async def test_the_changes_of_a_waiting_job_have_its_position(queue: QueueWorld) -> None:
    first, second = await queue.submit(), await queue.submit()
    assert await changes_of(queue, first) == JobChanges(Status.QUEUED, 0, None, 0, ())
    assert (await changes_of(queue, second)).position == 1
    assert await queue.jobs.changes(new_job_id()) is None


async def test_changes_have_the_entries_after_the_cursor(queue: QueueWorld) -> None:
    queue.register()
    job_id = await queue.running()
    queue.append(job_id, "57")
    queue.workers.release(job_id, 1)
    queue.claim(job_id)
    queue.append(job_id, "9!", before=2, attempt=2)
    queue.finish(job_id, before=4, attempt=2, tail="?", completion="579!?")

    changes = await changes_of(queue, job_id)
    assert (changes.status, changes.attempt, changes.position) == (Status.SUCCEEDED, 2, None)
    assert [entry.id for entry in changes.entries] == ["2-0", "2-1", "4-0", "4-1"]
    assert "".join(entry.text for entry in changes.entries) == "579!?"
    assert (changes.ended, changes.end_id) == (await queue.job(job_id), "4-2")
    # Cursors inside an entry, after a mark, and after the last entry.
    assert [entry.text for entry in (await changes_of(queue, job_id, 1)).entries] == ["7", "", "9!", "?"]
    assert [entry.id for entry in (await changes_of(queue, job_id, 2, 1)).entries] == ["4-0", "4-1"]
    assert [entry.text for entry in (await changes_of(queue, job_id, 3)).entries] == ["!", "?"]
    assert (await changes_of(queue, job_id, 4, 1)).entries == ()


async def test_the_end_of_an_empty_log_has_an_entry_id(queue: QueueWorld) -> None:
    job_id = await queue.submit()
    await queue.jobs.cancel(job_id)
    assert (await changes_of(queue, job_id)).end_id == "0-1"


async def test_versions_of_many_jobs(queue: QueueWorld) -> None:
    queue.register(slots=1)
    jobs = [await queue.submit() for _ in range(5)]
    queue.claim(jobs[0])
    gone = new_job_id()
    # One dispatched job is ahead of the other, and both are ahead of the backlog.
    assert await queue.jobs.versions([jobs[0], gone, jobs[2], jobs[4]]) == [
        JobVersion((await queue.job(jobs[0])).version, None),
        None,
        JobVersion(1, 1),
        JobVersion(1, 3),
    ]
    assert await queue.jobs.versions([]) == []


def generation_of(max_tokens: int) -> Generation:
    return make_generation(prompt="1+1=", max_tokens=max_tokens, temperature=0.0, seed=7)


async def test_the_load_counts_waiting_tokens_through_every_transition(queue: QueueWorld) -> None:
    async def waiting() -> tuple[int, int, int]:
        load = await queue.jobs.queue_load("tiny")
        return load.waiting, load.waiting_tokens, load.running

    first = await queue.submit(generation=generation_of(10))
    second = await queue.submit(generation=generation_of(30))
    third = await queue.submit(generation=generation_of(5))
    assert await waiting() == (3, 45, 0)
    queue.register()
    assert await waiting() == (3, 45, 0)
    queue.claim(first)
    assert await waiting() == (2, 35, 1)
    queue.append(first, "579")
    queue.workers.release(first, 1)
    # Three of its ten tokens exist already.
    assert await waiting() == (3, 42, 0)
    await queue.jobs.cancel(second)
    assert await waiting() == (2, 12, 0)
    queue.workers.requeue(third)
    assert await waiting() == (2, 12, 0)
    queue.claim(first)
    await queue.jobs.delete(third)
    assert await waiting() == (0, 0, 1)
    assert not queue.redis.exists(keys.waiting_tokens("tiny"))


async def test_successful_jobs_update_the_averages(queue: QueueWorld) -> None:
    queue.register(slots=3)
    assert await queue.jobs.queue_load("tiny") == QueueLoad(
        waiting=0,
        waiting_tokens=0,
        running=0,
        slots=3,
        first_token_s=None,
        s_per_token=0.0,
        share=1.0,
        accuracy=(),
    )

    async def run(seconds: float, tokens: str, max_tokens: int, *, predicted_s: float | None) -> None:
        job_id = await queue.submit(generation=generation_of(max_tokens), predicted_s=predicted_s)
        queue.claim(job_id)
        queue.append(job_id, tokens[:1])
        # The first token comes after half of the time.
        queue.redis.hincrby(keys.job(job_id), "first_token_at", -round(seconds * 500))
        for field in ("started_at", "created_at"):
            queue.redis.hincrby(keys.job(job_id), field, -round(seconds * 1000))
        queue.finish(job_id, tokens[1:], before=1)

    await run(100.0, "x" * 51, 102, predicted_s=200.0)
    load = await queue.jobs.queue_load("tiny")
    assert (load.first_token_s, load.s_per_token, load.share, load.accuracy) == (
        pytest.approx(50.0, rel=0.01),
        pytest.approx(1.0, rel=0.01),
        pytest.approx(0.5),
        (pytest.approx(0.5, rel=0.01),),
    )
    await run(100.0, "x" * 11, 110, predicted_s=None)
    load = await queue.jobs.queue_load("tiny")
    assert load.s_per_token == pytest.approx(1.0 + LIMITS["PACE_WEIGHT"] * (5.0 - 1.0), rel=0.01)
    assert load.share == pytest.approx(0.5 + LIMITS["PACE_WEIGHT"] * (0.1 - 0.5))
    assert len(load.accuracy) == 1
    for key in (keys.pace("tiny"), keys.accuracy("tiny")):
        assert queue.redis.pttl(key) > 0


async def test_the_number_of_accuracies_is_limited(queue: QueueWorld) -> None:
    # The worker must not count as gone before the last job.
    queue = queue.tuned(worker_ttl_s=600.0)
    queue.register()
    for _ in range(LIMITS["ACCURACY_WINDOW"] + 5):
        job_id = await queue.submit(predicted_s=1.0)
        queue.claim(job_id)
        queue.finish(job_id, "x")
    assert len((await queue.jobs.queue_load("tiny")).accuracy) == LIMITS["ACCURACY_WINDOW"]


async def test_failed_and_resumed_jobs_do_not_change_the_averages(queue: QueueWorld) -> None:
    queue.register()
    failed = await queue.running()
    queue.finish(failed, "x", status=Status.FAILED)
    empty = await queue.running(predicted_s=1.0)
    queue.finish(empty)
    assert (await queue.jobs.queue_load("tiny")).first_token_s is None
    resumed = await queue.submit(predicted_s=1.0)
    queue.claim(resumed)
    queue.workers.release(resumed, 1)
    queue.claim(resumed)
    queue.finish(resumed, "x", attempt=2)
    load = await queue.jobs.queue_load("tiny")
    assert (load.first_token_s, load.accuracy) == (None, ())


async def test_a_caller_may_limit_the_position(queue: QueueWorld) -> None:
    for priority in (5, 5, 7):
        await queue.submit(priority=priority)
    with pytest.raises(QueuePositionError) as refusal:
        await queue.submit(max_position=1)
    assert (refusal.value.position, refusal.value.limit) == (2, 1)
    # A more urgent job would have fewer ahead of it.
    assert (await queue.job(await queue.submit(max_position=0, priority=4))).position == 0
    assert (await queue.job(await queue.submit(max_position=3))).position == 3
    queue.register()
    # Dispatched jobs are ahead of every new job.
    with pytest.raises(QueuePositionError) as refusal:
        await queue.submit(max_position=0, priority=0)
    assert refusal.value.position == 4
    assert len((await queue.jobs.list(limit=100)).jobs) == 5
