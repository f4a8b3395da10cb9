"""Claims, leases and releases: one worker holds a job at a time, and writes of earlier attempts are refused."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from tasks.generation import FinishReason
from tasks.job import ErrorCode, JobError, Status, TimeLimits
from tasks.job_id import new_job_id
from tasks.store import keys
from tasks.store.worker_store import Claimed, Refused
from tests.integration.conftest import CARD, WORKER, QueueWorld

pytestmark = pytest.mark.anyio

TOO_LONG = JobError(ErrorCode.PROMPT_TOO_LONG, "The prompt is too long.", retryable=False)


async def test_a_claimed_job_runs_with_a_lease(queue: QueueWorld) -> None:
    queue.register()
    job_id = await queue.submit(warnings=("from the front end",))
    claimed = queue.workers.claim(
        job_id,
        worker=WORKER.name,
        incarnation=WORKER.incarnation,
        digest=CARD.digest,
        prompt_tokens=5,
        warnings=("from the front end", "from the worker"),
    )
    job = await queue.job(job_id)
    assert not isinstance(claimed, Refused)
    assert (claimed.attempt, claimed.token_ids, claimed.pieces) == (1, (), ())
    assert (job.status, job.attempt, job.worker, job.position) == (Status.RUNNING, 1, WORKER.name, None)
    assert (job.prompt_tokens, job.warnings) == (5, ("from the front end", "from the worker"))
    assert job.started_at is not None
    lease_end = queue.redis.zscore(keys.running("tiny"), job_id)
    assert lease_end == pytest.approx(time.time() * 1000 + queue.settings.lease_s * 1000, abs=2000)
    assert await queue.jobs.log(job_id) == []


async def test_a_job_is_claimed_once(queue: QueueWorld) -> None:
    queue.register()
    job_id = await queue.running()
    assert queue.try_claim(job_id) == Refused("running")
    queue.finish(job_id)
    assert queue.try_claim(job_id) == Refused("terminal")
    assert queue.try_claim(new_job_id()) == Refused("gone")


async def test_a_worker_can_ask_which_jobs_no_longer_wait(queue: QueueWorld) -> None:
    queue.register(slots=4)
    dispatched, cancelled, finished = [await queue.submit() for _ in range(3)]
    running = await queue.running()
    await queue.jobs.cancel(cancelled)
    queue.claim(finished)
    queue.finish(finished)
    gone = new_job_id()
    job_ids = [dispatched, cancelled, finished, running, gone]
    assert queue.workers.no_longer_queued(job_ids) == {cancelled, finished, running, gone}


async def test_of_many_claims_at_once_one_succeeds(queue: QueueWorld) -> None:
    queue.register()
    job_id = await queue.submit()
    with ThreadPoolExecutor(16) as threads:
        outcomes = list(threads.map(lambda _: queue.try_claim(job_id), range(64)))
    assert sum(isinstance(outcome, Claimed) for outcome in outcomes) == 1
    assert outcomes.count(Refused("running")) == 63
    assert (await queue.job(job_id)).attempt == 1


async def test_a_claim_sent_again_after_a_lost_reply_is_the_same_claim(
    queue: QueueWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue.register()
    job_id = await queue.submit()
    monkeypatch.setattr("tasks.store.worker_store.secrets.token_hex", lambda _: "the-same-call")
    first, again = queue.claim(job_id), queue.claim(job_id)
    assert first == again
    assert (await queue.job(job_id)).attempt == 1


async def test_a_stray_message_of_a_job_in_the_backlog_is_refused(queue: QueueWorld) -> None:
    job_id = await queue.submit()
    assert queue.try_claim(job_id) == Refused("waiting")
    assert (await queue.job(job_id)).status is Status.QUEUED


async def test_replaced_weights_fail_the_job(queue: QueueWorld) -> None:
    info = queue.register()
    job_id = await queue.submit()
    queue.workers.deregister(info)
    new = queue.register(card=replace(CARD, digest="digest-2"), name="tiny-2@host")
    assert queue.try_claim(job_id, new) == Refused("digest")
    job = await queue.job(job_id)
    assert (job.status, job.finish_reason, job.attempt) == (Status.FAILED, FinishReason.ERROR, 0)
    assert job.error is not None
    assert (job.error.code, job.error.retryable) == (ErrorCode.CHECKPOINT_CHANGED, True)


async def test_a_worker_with_old_weights_leaves_the_job_to_other_workers(queue: QueueWorld) -> None:
    new = queue.register(card=replace(CARD, digest="digest-2"))
    job_id = await queue.submit(digest="digest-2")
    old = replace(WORKER, name="tiny-old@host")
    assert queue.try_claim(job_id, old) == Refused("superseded")
    queue.workers.reject(job_id, TOO_LONG, digest=old.digest)
    assert (await queue.job(job_id)).status is Status.QUEUED
    assert queue.claim(job_id, new).attempt == 1


async def test_a_rejected_job_fails_before_it_starts(queue: QueueWorld) -> None:
    queue.register()
    job_id = await queue.submit()
    queue.workers.reject(job_id, TOO_LONG, digest=CARD.digest)
    job = await queue.job(job_id)
    assert (job.status, job.error, job.started_at, job.completion) == (Status.FAILED, TOO_LONG, None, "")
    queue.workers.reject(job_id, TOO_LONG, digest=CARD.digest)
    assert (await queue.job(job_id)).version == job.version


async def test_a_running_job_is_not_rejected(queue: QueueWorld) -> None:
    queue.register()
    job_id = await queue.running()
    queue.workers.reject(job_id, TOO_LONG, digest=CARD.digest)
    assert (await queue.job(job_id)).status is Status.RUNNING


async def test_a_later_attempt_fences_the_earlier_one(queue: QueueWorld) -> None:
    queue.register()
    job_id = await queue.running()
    queue.append(job_id, "5")
    assert queue.workers.release(job_id, 1)
    assert queue.append(job_id, "7", before=1).fenced
    queue.claim(job_id)
    assert queue.append(job_id, "7", before=1).fenced
    assert queue.finish(job_id, "7", before=1).fenced
    assert not queue.workers.release(job_id, 1)
    assert queue.workers.renew({job_id: 1}).lost == (job_id,)
    assert not queue.append(job_id, "8", before=1, attempt=2).fenced
    assert "".join(entry.text for entry in await queue.jobs.log(job_id)) == "58"


async def test_an_attempt_mark_is_between_the_tokens(queue: QueueWorld) -> None:
    queue.register()
    job_id = await queue.running()
    queue.append(job_id, "57")
    queue.workers.release(job_id, 1)
    queue.claim(job_id)
    queue.workers.release(job_id, 2)
    queue.claim(job_id)
    queue.append(job_id, "9", before=2, attempt=3)
    entries = await queue.jobs.log(job_id)
    assert [(entry.id, entry.text, entry.attempt) for entry in entries] == [
        ("2-0", "57", None),
        ("2-1", "", 2),
        ("2-2", "", 3),
        ("3-0", "9", None),
    ]
    assert (await queue.job(job_id)).resumed_tokens == 2


async def test_an_attempt_mark_before_the_first_token(queue: QueueWorld) -> None:
    queue.register()
    job_id = await queue.running()
    started_at = (await queue.job(job_id)).started_at
    queue.workers.release(job_id, 1)
    assert queue.claim(job_id).token_ids == ()
    assert [(entry.id, entry.attempt) for entry in await queue.jobs.log(job_id)] == [("0-1", 2)]
    assert (await queue.job(job_id)).started_at == started_at


async def test_a_renewal_extends_leases_and_returns_lost_and_cancelled_jobs(queue: QueueWorld) -> None:
    queue.register()
    kept, cancelled, finished = [await queue.running() for _ in range(3)]
    queue.finish(finished)
    await queue.jobs.cancel(cancelled)
    before = queue.redis.zscore(keys.running("tiny"), kept)
    longer = queue.tuned(lease_s=60.0)
    renewal = longer.workers.renew({kept: 1, cancelled: 1, finished: 1, "job_unknown": 1})
    assert renewal.lost == (finished, "job_unknown")
    assert renewal.cancelled == (cancelled,)
    after = queue.redis.zscore(keys.running("tiny"), kept)
    assert before is not None
    assert after is not None
    assert after > before + 50_000
    assert queue.redis.zcard(keys.running("tiny")) == 2


async def test_releases_do_not_count_as_losses(queue: QueueWorld) -> None:
    queue.register()
    job_id = await queue.submit()
    for attempt in range(1, 15):
        assert queue.claim(job_id).attempt == attempt
        queue.workers.release(job_id, attempt)
    job = await queue.job(job_id)
    assert (job.status, job.losses) == (Status.QUEUED, 0)


async def test_three_losses_without_a_new_token_fail_the_job(queue: QueueWorld) -> None:
    queue.register()
    job_id = await queue.submit()
    queue.claim(job_id)
    queue.append(job_id, "57")
    for attempt in (1, 2):
        queue.workers.release(job_id, attempt, count_loss=True)
        assert (await queue.job(job_id)).losses == attempt
        queue.claim(job_id)
    queue.workers.release(job_id, 3, count_loss=True)
    job = await queue.job(job_id)
    assert (job.status, job.losses, job.completion) == (Status.FAILED, 3, "57")
    assert job.error is not None
    assert job.error.code is ErrorCode.WORKER_LOST
    assert queue.redis.zcard(keys.running("tiny")) == 0


async def test_a_new_token_resets_the_losses_but_ten_in_all_fail_the_job(queue: QueueWorld) -> None:
    queue.register()
    job_id = await queue.submit()
    for attempt in range(1, 11):
        queue.claim(job_id)
        queue.append(job_id, "x", before=attempt - 1, attempt=attempt)
        job = await queue.job(job_id)
        assert (job.losses, job.losses_in_a_row) == (attempt - 1, 0)
        queue.workers.release(job_id, attempt, count_loss=True)
    assert (await queue.job(job_id)).status is Status.FAILED


async def test_every_change_is_notified(queue: QueueWorld) -> None:
    queue.register()
    job_id = await queue.submit()
    with queue.subscribed(keys.state_channel(job_id), keys.tokens_channel(job_id)) as next_message:
        versions = [(await queue.job(job_id)).version]
        for change, channel in (
            (lambda: queue.claim(job_id), keys.state_channel),
            (lambda: queue.append(job_id, "5"), keys.tokens_channel),
            (lambda: queue.workers.release(job_id, 1), keys.state_channel),
            (lambda: queue.claim(job_id), keys.state_channel),
            (lambda: queue.finish(job_id, before=1, attempt=2), keys.state_channel),
        ):
            change()
            assert next_message() == (channel(job_id), "")
            versions.append((await queue.job(job_id)).version)
        assert versions == sorted(set(versions))
        assert next_message(0.05) is None


@pytest.mark.parametrize("beyond_ms", [0, 1, 2, 1000])
async def test_a_repeated_claim_past_a_limit_has_no_time_left_and_not_no_limit(
    queue: QueueWorld, beyond_ms: int
) -> None:
    queue.register()
    job_id = await queue.submit(limits=TimeLimits(deadline_ms=600_000))
    claimed = [_named_claim(queue, job_id)]
    # As if the reply had been lost until after the deadline.
    now_ms = queue.redis.time()[0] * 1000 + queue.redis.time()[1] // 1000
    queue.redis.hset(keys.job(job_id), "deadline_at", now_ms - beyond_ms)
    claimed.append(_named_claim(queue, job_id))
    assert [claim.attempt for claim in claimed] == [1, 1]
    assert claimed[0].time_left_s == pytest.approx(600, abs=60)
    assert claimed[1].time_left_s == 0


def _named_claim(queue: QueueWorld, job_id: str) -> Claimed:
    claim = queue.workers.claim(
        job_id, worker=WORKER.name, incarnation="first", digest=WORKER.digest, prompt_tokens=4, claim="a-name"
    )
    assert isinstance(claim, Claimed)
    return claim
