"""The poll of many watched jobs."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

import pytest

from api.jobs.job_watch import JOBS_PER_CALL, JobWatch, WatchedJob
from api.jobs.subscriptions import Subscriptions
from tasks.redis_client.connections import make_async
from tasks.store.job_store import JobStore
from tasks.store.replies import JobVersion
from tests.helpers.api_client import settings_for

pytestmark = pytest.mark.anyio

#: A little more than several calls take.
JOBS = 3 * JOBS_PER_CALL + 7


class CountingStore(JobStore):
    """Answers every poll with a new version of every job."""

    def __init__(self, redis_url: str) -> None:
        super().__init__(make_async(settings_for(redis_url)), settings_for(redis_url))
        self.calls: list[int] = []
        #: Called in each call.
        self.meanwhile = ExitStack()

    async def versions(self, job_ids: Sequence[str]) -> Sequence[JobVersion | None]:
        self.calls.append(len(job_ids))
        self.meanwhile.close()
        return [JobVersion(len(self.calls), None) for _ in job_ids]


async def test_a_poll_reads_every_job_and_a_limited_number_in_each_call(redis_url: str) -> None:
    store = CountingStore(redis_url)
    watch = JobWatch(store, Subscriptions(make_async(settings_for(redis_url))), poll_every_s=3600.0)
    with ExitStack() as all_of_them:
        watched = [all_of_them.enter_context(watch.watch_end(str(number))) for number in range(JOBS)]
        await watch.poll()
        assert sum(store.calls) == JOBS
        assert max(store.calls) == JOBS_PER_CALL
        assert all(notified(job) for job in watched)


async def test_a_job_that_is_no_longer_watched_during_a_poll_is_left_out(redis_url: str) -> None:
    store = CountingStore(redis_url)
    watch = JobWatch(store, Subscriptions(make_async(settings_for(redis_url))), poll_every_s=3600.0)
    with ExitStack() as others:
        for number in range(JOBS):
            others.enter_context(watch.watch_end(str(number)))
        store.meanwhile.enter_context(watch.watch_end("last"))
        await watch.poll()
        assert watch.jobs == JOBS
    assert watch._versions == {}


def notified(job: WatchedJob) -> bool:
    return job.subscription.changed
