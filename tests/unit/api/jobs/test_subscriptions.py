"""One pub/sub connection behind any number of waiters."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import ExitStack

import pytest
import redis
from redis.asyncio import Redis

from api.jobs.job_watch import JobWatch
from api.jobs.subscriptions import Bell, Bells
from tasks.store import keys
from tasks.store.connections import make_async
from tasks.store.job_store import JobStore
from tests.helpers.api_client import DEADLINE_S, api, eventually, settings_for
from tests.helpers.fake_worker import fake_worker

pytestmark = pytest.mark.anyio

WAITERS = 1000
#: More than the connections of the process.
REQUESTS = 200


@pytest.fixture
async def client(redis_url: str) -> AsyncIterator[Redis]:
    client = make_async(settings_for(redis_url))
    yield client
    await client.aclose()


@pytest.fixture
async def bells(client: Redis) -> AsyncIterator[Bells]:
    bells = Bells(client)
    bells.start()
    yield bells
    await bells.stop()


async def subscribed(bell: Bell) -> None:
    """The subscription holds: it says so by ringing."""
    assert await bell.wait(DEADLINE_S)


async def subscribers(client: Redis, channel: str) -> int:
    [(_, count)] = await client.pubsub_numsub(channel)
    return int(count)


async def test_a_ring_wakes_every_waiter_of_its_channel_and_no_other(bells: Bells, client: Redis) -> None:
    with bells.listen("a") as first, bells.listen("a") as second, bells.listen("b") as other:
        for bell in (first, second, other):
            await subscribed(bell)
        await client.publish("a", "")
        assert await first.wait(DEADLINE_S)
        assert await second.wait(DEADLINE_S)
        assert not await other.wait(0.05)
        assert not await first.wait(0.05), "one ring is heard once"


async def test_one_bell_for_several_channels(bells: Bells, client: Redis) -> None:
    with bells.listen("state", "tokens") as bell:
        await subscribed(bell)
        while await bell.wait(0.1):
            pass
        for channel in ("state", "tokens"):
            await client.publish(channel, "")
            assert await bell.wait(DEADLINE_S)


async def test_rings_that_come_while_nobody_waits_are_heard_as_one(bells: Bells, client: Redis) -> None:
    with bells.listen("a") as bell, bells.listen("last") as last:
        await subscribed(bell)
        await subscribed(last)
        for _ in range(3):
            await client.publish("a", "")
        await client.publish("last", "")
        assert await last.wait(DEADLINE_S)
        assert await bell.wait(0)
        assert not await bell.wait(0.05)


async def test_who_joins_a_channel_later_may_read_at_once(bells: Bells) -> None:
    with bells.listen("a") as first:
        await subscribed(first)
        with bells.listen("a") as second:
            assert await second.wait(0)


async def test_a_channel_is_left_with_its_last_waiter(bells: Bells, client: Redis) -> None:
    with bells.listen("other") as other:
        with bells.listen("a") as first:
            with bells.listen("a") as second:
                await subscribed(first)
                await subscribed(second)
            assert await subscribers(client, "a") == 1
        assert bells.channels == 1
        # The server works off one connection in order: when it has the later subscription, it had the end of the first.
        await subscribed(other)
        with bells.listen("marker") as marker:
            await subscribed(marker)
            assert await subscribers(client, "a") == 0
    assert bells.channels == 0


async def test_a_channel_that_comes_and_goes_and_comes_still_rings(bells: Bells, client: Redis) -> None:
    for _ in range(50):
        with bells.listen("a"):
            await asyncio.sleep(0)
    with bells.listen("a") as bell:
        await subscribed(bell)
        while await bell.wait(0.1):
            pass
        await client.publish("a", "")
        assert await bell.wait(DEADLINE_S)


async def test_after_a_lost_connection_every_bell_rings_once_and_works_on(bells: Bells, client: Redis) -> None:
    with bells.listen("a") as first, bells.listen("b") as second:
        await subscribed(first)
        await subscribed(second)
        assert await client.client_kill_filter(_type="pubsub") == 1
        for bell, channel in ((first, "a"), (second, "b")):
            await subscribed(bell)
            await client.publish(channel, "")
            assert await bell.wait(DEADLINE_S)


async def test_the_end_of_a_job_is_told_to_who_submitted_it_and_to_no_other(bells: Bells, client: Redis) -> None:
    with bells.reply("job_a") as first, bells.reply("job_b") as other:
        await subscribed(first)
        await subscribed(other)
        await client.publish(bells.reply_channel, "job_a")
        assert await first.wait(DEADLINE_S)
        assert not await other.wait(0.05)
    assert bells.reply_channel != Bells(client).reply_channel, "each process has its own"


async def test_after_a_lost_connection_who_waits_for_an_end_looks_again(bells: Bells, client: Redis) -> None:
    with bells.reply("job_a") as bell:
        await subscribed(bell)
        assert await client.client_kill_filter(_type="pubsub") == 1
        assert await bell.wait(DEADLINE_S)
        await client.publish(bells.reply_channel, "job_a")
        assert await bell.wait(DEADLINE_S)


async def test_waiters_by_the_thousand_share_the_connection(bells: Bells, client: Redis) -> None:
    with ExitStack() as stack:
        names = [f"channel-{number}" for number in range(WAITERS)]
        ears = [stack.enter_context(bells.listen(name)) for name in names]
        await asyncio.gather(*(subscribed(ear) for ear in ears))
        assert len(await client.client_list(_type="pubsub")) == 1
        for name in names:
            await client.publish(name, "")
        await asyncio.gather(*(subscribed(ear) for ear in ears))


async def test_a_change_whose_ring_was_lost_is_noticed(redis_url: str, client: Redis) -> None:
    settings = settings_for(redis_url)
    store = JobStore(client, settings)
    deaf = JobWatch(store, Bells(client), look_every_s=0.05)
    deaf.start()
    async with api(settings) as http:
        with fake_worker(settings):
            pass
        job = (await http.post("/v1/jobs", json={"prompt": "1", "wait_for_worker": True})).json()
        with deaf.watch(job["id"], tokens=False) as watched:
            assert await watched.bell.wait(DEADLINE_S), "the first look always rings"
            assert not await watched.bell.wait(0.2), "nothing changed"
            await store.cancel(job["id"])
            assert await watched.bell.wait(DEADLINE_S)
    assert deaf.jobs == 0
    await deaf.stop()


async def test_many_waiting_requests_cost_no_more_connections_than_a_few(redis_url: str) -> None:
    settings = settings_for(redis_url)
    with redis.Redis.from_url(redis_url) as admin:
        async with api(settings) as client:
            with fake_worker(settings):
                pass
            body = {"prompt": "1", "wait_for_worker": True}
            calls = [
                asyncio.create_task(client.post("/v1/jobs", json=body, headers={"Prefer": "wait=60"}, timeout=60))
                for _ in range(REQUESTS)
            ]
            await asyncio.to_thread(eventually, lambda: admin.zcard(keys.jobs_with("queued")) == REQUESTS, 60)
            assert len(admin.pubsub_channels()) == 1, "one for all that wait for the end of what they submitted"
            kinds = [connection["flags"] for connection in admin.client_list()]
            assert sum("P" in kind for kind in kinds) == 1
            assert len(kinds) <= 40
            # The loop is free: others are served meanwhile.
            assert (await client.get("/health")).status_code == 200
            ids = [key.decode().removeprefix("celeriac:job:") for key in admin.scan_iter("celeriac:job:job_*")]
            assert len(ids) == REQUESTS
            for job_id in ids:
                await client.post(f"/v1/jobs/{job_id}/cancel")
            answers = await asyncio.gather(*calls)
            assert {answer.status_code for answer in answers} == {200}
            assert {answer.json()["status"] for answer in answers} == {"cancelled"}
            await asyncio.to_thread(eventually, lambda: not admin.pubsub_channels("*:state"))
    assert json.loads(answers[0].content)["cancel_requested"] is True
