"""Cancelling: a waiting job ends at once, a running job is stopped by its worker."""

from __future__ import annotations

import pytest

from tasks.generation import FinishReason
from tasks.job import Status
from tasks.store import keys
from tasks.store.worker_store import Refused
from tests.integration.conftest import WORKER, QueueWorld

pytestmark = pytest.mark.anyio


async def test_a_waiting_job_ends_at_once(queue: QueueWorld) -> None:
    job_id = await queue.submit()
    job = await queue.jobs.cancel(job_id)
    assert job is not None
    assert (job.status, job.finish_reason, job.completion, job.position) == (
        Status.CANCELLED,
        FinishReason.CANCELLED,
        "",
        None,
    )
    assert job.cancellation is not None
    assert (job.cancellation.latency_ms, job.cancellation.tokens_after) == (0, 0)


async def test_a_cancelled_waiting_job_is_never_dispatched(queue: QueueWorld) -> None:
    first, second = await queue.submit(), await queue.submit()
    await queue.jobs.cancel(first)
    queue.register()
    assert queue.pushed() == [second]
    assert (await queue.job(second)).position == 0


async def test_a_cancelled_dispatched_job_frees_its_place_and_cannot_be_claimed(queue: QueueWorld) -> None:
    queue.register(slots=1)
    jobs = [await queue.submit() for _ in range(4)]
    assert queue.pushed() == jobs[:3]
    await queue.jobs.cancel(jobs[0])
    assert queue.pushed() == jobs
    assert queue.try_claim(jobs[0]) == Refused("terminal")


async def test_the_worker_of_a_running_job_is_notified(queue: QueueWorld) -> None:
    queue.register()
    job_id = await queue.running()
    queue.append(job_id, "57")
    with queue.subscribed(keys.worker_channel(WORKER.name)) as next_message:
        job = await queue.jobs.cancel(job_id)
        assert next_message() == (keys.worker_channel(WORKER.name), job_id)
    assert job is not None
    assert (job.status, job.completion) == (Status.RUNNING, None)
    assert job.cancellation is not None
    assert (job.cancellation.acked_at, job.cancellation.tokens_after) == (None, None)
    assert queue.append(job_id, "9", before=2).cancel_requested

    queue.finish(
        job_id, "!", before=3, completion="579!", status=Status.CANCELLED, finish_reason=FinishReason.CANCELLED
    )
    job = await queue.job(job_id)
    assert (job.status, job.completion) == (Status.CANCELLED, "579!")
    assert job.cancellation is not None
    assert job.cancellation.tokens_after == 2
    assert job.cancellation.latency_ms is not None
    assert job.cancellation.latency_ms >= 0


@pytest.mark.parametrize(
    ("known", "after"),
    [(None, 4), (4, 2), (6, 0), (1, 4)],
    ids=["at a renewal", "by the notification", "after its last token", "with fewer tokens than the log"],
)
async def test_tokens_before_the_notification_do_not_count_as_after_the_cancel(
    queue: QueueWorld, known: int | None, after: int
) -> None:
    queue.register()
    job_id = await queue.running()
    queue.append(job_id, "12")
    await queue.jobs.cancel(job_id)
    queue.append(job_id, "3", before=2)
    queue.finish(
        job_id,
        "456",
        before=3,
        status=Status.CANCELLED,
        finish_reason=FinishReason.CANCELLED,
        tokens_at_cancel=known,
    )
    job = await queue.job(job_id)
    assert job.cancellation is not None
    assert job.cancellation.tokens_after == after


async def test_a_notification_without_a_cancel_request_cancels_nothing(queue: QueueWorld) -> None:
    queue.register()
    job_id = await queue.running()
    queue.finish(job_id, "579", tokens_at_cancel=1)
    assert (await queue.job(job_id)).cancellation is None


async def test_cancelling_again_keeps_the_first_request(queue: QueueWorld) -> None:
    queue.register()
    job_id = await queue.running()
    first = await queue.jobs.cancel(job_id)
    queue.append(job_id, "5")
    again = await queue.jobs.cancel(job_id)
    assert first is not None
    assert again is not None
    assert again.cancellation == first.cancellation


async def test_a_job_that_finishes_before_the_cancel_takes_effect_succeeds(queue: QueueWorld) -> None:
    queue.register()
    job_id = await queue.running()
    await queue.jobs.cancel(job_id)
    queue.finish(job_id, "579")
    job = await queue.job(job_id)
    assert (job.status, job.finish_reason) == (Status.SUCCEEDED, FinishReason.STOP)
    assert job.cancellation is not None
    assert job.cancellation.tokens_after == 3


async def test_a_cancelled_job_that_is_released_does_not_run_again(queue: QueueWorld) -> None:
    queue.register()
    job_id = await queue.running()
    queue.append(job_id, "57")
    await queue.jobs.cancel(job_id)
    assert queue.workers.release(job_id, 1)
    job = await queue.job(job_id)
    assert (job.status, job.completion) == (Status.CANCELLED, "57")


async def test_a_resumed_waiting_job_keeps_its_text(queue: QueueWorld) -> None:
    queue.register()
    job_id = await queue.running()
    queue.append(job_id, "5é")
    queue.workers.release(job_id, 1)
    job = await queue.jobs.cancel(job_id)
    assert job is not None
    assert (job.status, job.completion, job.tokens) == (Status.CANCELLED, "5é", 2)


async def test_the_worker_store_cancels_too(queue: QueueWorld) -> None:
    job_id = await queue.submit()
    queue.workers.cancel(job_id)
    assert (await queue.job(job_id)).status is Status.CANCELLED
