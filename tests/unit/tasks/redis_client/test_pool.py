"""What callers of one process get while Redis does not answer."""

from __future__ import annotations

import asyncio

import pytest
from redis.exceptions import ReadOnlyError
from redis.exceptions import TimeoutError as RedisTimeoutError

from tasks.redis_client.connections import MAX_CONNECTIONS, make_async, make_sync
from tasks.settings import Settings
from tests.helpers.fake_redis_server import fake_redis_server

pytestmark = pytest.mark.anyio

CALLERS = 10 * MAX_CONNECTIONS
#: Long enough for all callers to get an answer on a busy machine, in seconds.
TIMEOUT_S = 2.0


async def test_all_callers_share_one_time_limit_and_one_attempt_to_reach_redis() -> None:
    answers = True
    with fake_redis_server(lambda _: b"+PONG\r\n" if answers else None) as (url, server):
        client = make_async(Settings(redis_url=url, redis_timeout_s=TIMEOUT_S))

        async def ask_all() -> list[object]:
            return await asyncio.gather(*(client.ping() for _ in range(CALLERS)), return_exceptions=True)

        assert await ask_all() == [True] * CALLERS
        answers = False
        for _ in range(2):
            errors = await ask_all()
            assert {type(error) for error in errors} == {RedisTimeoutError}
        # The first callers used the open connections. After that, each group shared one attempt to connect.
        assert server.connections <= MAX_CONNECTIONS + 2
        answers = True
        assert await ask_all() == [True] * CALLERS
        await client.aclose()


async def test_a_caller_that_is_cancelled_does_not_end_the_attempt_of_the_others() -> None:
    answers = True
    with fake_redis_server(lambda _: b"+PONG\r\n" if answers else None) as (url, _):
        client = make_async(Settings(redis_url=url, redis_timeout_s=TIMEOUT_S))
        await client.ping()
        answers = False
        with pytest.raises(RedisTimeoutError):
            await client.ping()
        first, second = asyncio.create_task(client.ping()), asyncio.create_task(client.ping())
        await asyncio.sleep(0)
        first.cancel()
        with pytest.raises(RedisTimeoutError):
            await second
        assert first.cancelled()
        await client.aclose()


async def test_all_connections_to_a_server_that_became_a_replica_are_replaced() -> None:
    primary = True

    def reply(command: list[str]) -> bytes:
        return b"+OK\r\n" if primary or command[0] != "SET" else b"-READONLY You can't write.\r\n"

    with fake_redis_server(reply) as (url, server):
        client = make_async(Settings(redis_url=url))
        await asyncio.gather(*(client.set("key", "value") for _ in range(10)))
        before, primary = server.connections, False
        with pytest.raises(ReadOnlyError):
            await client.set("key", "value")
        primary = True
        await asyncio.gather(*(client.set("key", "value") for _ in range(10)))
        assert server.connections == 2 * before
        await client.aclose()


async def test_a_server_that_became_a_replica_gets_a_new_connection_for_the_next_command() -> None:
    primary = True

    def reply(command: list[str]) -> bytes:
        return b"+OK\r\n" if primary or command[0] != "SET" else b"-READONLY You can't write.\r\n"

    with fake_redis_server(reply) as (url, server):
        settings = Settings(redis_url=url)
        asynchronous = make_async(settings)
        with make_sync(settings) as synchronous:
            await asynchronous.set("key", "value")
            synchronous.set("key", "value")
            before, primary = server.connections, False
            with pytest.raises(ReadOnlyError):
                await asynchronous.set("key", "value")
            with pytest.raises(ReadOnlyError):
                synchronous.set("key", "value")
            primary = True
            await asynchronous.set("key", "value")
            synchronous.set("key", "value")
            assert server.connections == before + 2
        await asynchronous.aclose()
