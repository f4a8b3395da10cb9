"""Subscriptions: one pub/sub connection serves any number of waiters."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import ExitStack

import pytest
import redis
from redis.asyncio import Redis

from api.jobs.job_watch import JobWatch
from api.jobs.subscriptions import Subscription, Subscriptions
from tasks.redis_client.connections import make_async
from tasks.store import keys
from tasks.store.job_store import JobStore
from tests.helpers.api_client import DEADLINE_S, api, eventually, settings_for
from tests.helpers.fake_worker import fake_worker

pytestmark = pytest.mark.anyio

WAITERS = 1000
#: More than the process may have connections to Redis.
REQUESTS = 200


@pytest.fixture
async def client(redis_url: str) -> AsyncIterator[Redis]:
    client = make_async(settings_for(redis_url))
    yield client
    await client.aclose()


@pytest.fixture
async def subscriptions(client: Redis) -> AsyncIterator[Subscriptions]:
    subscriptions = Subscriptions(client)
    subscriptions.start()
    yield subscriptions
    await subscriptions.stop()


async def confirmed(subscription: Subscription) -> None:
    """Wait until the server has confirmed the subscription, which notifies it."""
    assert await subscription.wait(DEADLINE_S)


async def subscribers(client: Redis, channel: str) -> int:
    [(_, count)] = await client.pubsub_numsub(channel)
    return int(count)


async def test_a_message_notifies_every_waiter_of_its_channel_and_no_other(
    subscriptions: Subscriptions, client: Redis
) -> None:
    with (
        subscriptions.subscribe("a") as first,
        subscriptions.subscribe("a") as second,
        subscriptions.subscribe("b") as other,
    ):
        for subscription in (first, second, other):
            await confirmed(subscription)
        await client.publish("a", "")
        assert await first.wait(DEADLINE_S)
        assert await second.wait(DEADLINE_S)
        assert not await other.wait(0.05)
        assert not await first.wait(0.05), "one message ends one wait"


async def test_one_subscription_to_several_channels(subscriptions: Subscriptions, client: Redis) -> None:
    with subscriptions.subscribe("state", "tokens") as subscription:
        await confirmed(subscription)
        while await subscription.wait(0.1):
            pass
        for channel in ("state", "tokens"):
            await client.publish(channel, "")
            assert await subscription.wait(DEADLINE_S)


async def test_messages_between_two_waits_count_as_one(subscriptions: Subscriptions, client: Redis) -> None:
    with subscriptions.subscribe("a") as subscription, subscriptions.subscribe("last") as last:
        await confirmed(subscription)
        await confirmed(last)
        for _ in range(3):
            await client.publish("a", "")
        await client.publish("last", "")
        assert await last.wait(DEADLINE_S)
        assert await subscription.wait(0)
        assert not await subscription.wait(0.05)


async def test_a_later_waiter_of_a_confirmed_channel_may_read_at_once(subscriptions: Subscriptions) -> None:
    with subscriptions.subscribe("a") as first:
        await confirmed(first)
        with subscriptions.subscribe("a") as second:
            assert await second.wait(0)


async def test_a_channel_is_unsubscribed_with_its_last_waiter(subscriptions: Subscriptions, client: Redis) -> None:
    with subscriptions.subscribe("other") as other:
        with subscriptions.subscribe("a") as first:
            with subscriptions.subscribe("a") as second:
                await confirmed(first)
                await confirmed(second)
            assert await subscribers(client, "a") == 1
        assert subscriptions.channels == 1
        # The server handles the commands of a connection in order: once it has confirmed a later subscription, it has
        # ended the first one.
        await confirmed(other)
        with subscriptions.subscribe("marker") as marker:
            await confirmed(marker)
            assert await subscribers(client, "a") == 0
    assert subscriptions.channels == 0


async def test_a_channel_that_is_left_and_joined_repeatedly_still_notifies(
    subscriptions: Subscriptions, client: Redis
) -> None:
    for _ in range(50):
        with subscriptions.subscribe("a"):
            await asyncio.sleep(0)
    with subscriptions.subscribe("a") as subscription:
        await confirmed(subscription)
        while await subscription.wait(0.1):
            pass
        await client.publish("a", "")
        assert await subscription.wait(DEADLINE_S)


async def test_after_a_lost_connection_every_waiter_is_notified_once_and_subscribed_again(
    subscriptions: Subscriptions, client: Redis
) -> None:
    with subscriptions.subscribe("a") as first, subscriptions.subscribe("b") as second:
        await confirmed(first)
        await confirmed(second)
        assert await client.client_kill_filter(_type="pubsub") == 1
        for subscription, channel in ((first, "a"), (second, "b")):
            await confirmed(subscription)
            await client.publish(channel, "")
            assert await subscription.wait(DEADLINE_S)


async def test_the_end_of_a_job_notifies_its_own_waiter_and_no_other(
    subscriptions: Subscriptions, client: Redis
) -> None:
    with subscriptions.subscribe_to_end("job_a") as first, subscriptions.subscribe_to_end("job_b") as other:
        await confirmed(first)
        await confirmed(other)
        await client.publish(subscriptions.reply_channel, "job_a")
        assert await first.wait(DEADLINE_S)
        assert not await other.wait(0.05)
    assert subscriptions.reply_channel != Subscriptions(client).reply_channel, "each process has its own"


async def test_after_a_lost_connection_waiters_for_an_end_are_notified(
    subscriptions: Subscriptions, client: Redis
) -> None:
    with subscriptions.subscribe_to_end("job_a") as subscription:
        await confirmed(subscription)
        assert await client.client_kill_filter(_type="pubsub") == 1
        assert await subscription.wait(DEADLINE_S)
        await client.publish(subscriptions.reply_channel, "job_a")
        assert await subscription.wait(DEADLINE_S)


async def test_a_thousand_waiters_share_the_connection(subscriptions: Subscriptions, client: Redis) -> None:
    with ExitStack() as stack:
        names = [f"channel-{number}" for number in range(WAITERS)]
        waiters = [stack.enter_context(subscriptions.subscribe(name)) for name in names]
        await asyncio.gather(*(confirmed(waiter) for waiter in waiters))
        assert len(await client.client_list(_type="pubsub")) == 1
        for name in names:
            await client.publish(name, "")
        await asyncio.gather(*(confirmed(waiter) for waiter in waiters))


async def test_the_poll_finds_a_change_without_a_notification(redis_url: str, client: Redis) -> None:
    settings = settings_for(redis_url)
    store = JobStore(client, settings)
    # Its subscriptions are never started, so it gets no notifications.
    watch = JobWatch(store, Subscriptions(client), poll_every_s=0.05)
    watch.start()
    async with api(settings) as http:
        with fake_worker(settings):
            pass
        job = (await http.post("/v1/jobs", json={"prompt": "1", "wait_for_worker": True})).json()
        with watch.watch(job["id"], tokens=False) as watched:
            assert await watched.subscription.wait(DEADLINE_S), "the first poll always notifies"
            assert not await watched.subscription.wait(0.2), "nothing changed"
            await store.cancel(job["id"])
            assert await watched.subscription.wait(DEADLINE_S)
    assert watch.jobs == 0
    await watch.stop()


async def test_many_waiting_requests_need_no_more_connections_than_a_few(redis_url: str) -> None:
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
            assert len(admin.pubsub_channels()) == 1, "the reply channel serves all requests that wait for their jobs"
            kinds = [connection["flags"] for connection in admin.client_list()]
            assert sum("P" in kind for kind in kinds) == 1
            assert len(kinds) <= 40
            # The event loop is free to serve other requests at the same time.
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
