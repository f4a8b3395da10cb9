"""A request that is repeated with its Idempotency-Key when the key's job is no longer kept."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import redis

from tasks.settings import Settings
from tasks.store import keys
from tests.helpers.api_client import api, eventually, settings_for
from tests.helpers.fake_worker import FakeWorker, fake_worker

pytestmark = pytest.mark.anyio

KEY = {"Idempotency-Key": '"once"'}
SUM = {"prompt": "1+2=", "temperature": 0.0}
WAIT = {**KEY, "Prefer": "wait=10"}


@pytest.fixture
def settings(redis_url: str) -> Settings:
    return settings_for(redis_url)


@pytest.fixture
async def client(settings: Settings) -> AsyncIterator[httpx.AsyncClient]:
    async with api(settings) as client:
        yield client


class Route:
    """A route that takes an idempotency key."""

    def __init__(self, name: str, client: httpx.AsyncClient, worker: FakeWorker) -> None:
        self._name, self._client, self._worker = name, client, worker
        self._old: dict[str, Any] | None = None

    async def call(self) -> httpx.Response:
        """The request, always the same. It waits for its job."""
        if self._name != "retry":
            return await self._client.post(self._name, json=SUM, headers=WAIT)
        if self._old is None:
            self._old = await self._cancelled()
        answer = await self._client.post(self._old["urls"]["retry"], headers=KEY)
        if answer.is_success:
            await self._client.get(answer.headers["location"], params={"wait": 10})
        return answer

    async def _cancelled(self) -> dict[str, Any]:
        self._worker.go.clear()
        job = (await self._client.post("/v1/jobs", json=SUM)).json()
        await self._client.post(job["urls"]["cancel"])
        found: dict[str, Any] = (await self._client.get(job["urls"]["self"], params={"wait": 10})).json()
        self._worker.go.set()
        return found


def until_gone(connection: redis.Redis, key: str) -> None:
    eventually(lambda: not connection.exists(key))


ROUTES = ("/generate", "/v1/jobs", "retry")


def problem(answer: httpx.Response) -> tuple[int, str]:
    """Status and text of an error, on either kind of route."""
    return answer.status_code, answer.json()["detail"]


@pytest.mark.parametrize("name", ROUTES)
async def test_the_key_of_an_expired_or_deleted_job_is_410_with_what_to_do(
    name: str, settings: Settings, client: httpx.AsyncClient
) -> None:
    with fake_worker(settings) as worker, redis.Redis.from_url(settings.redis_url) as connection:
        for lose, why in (("expire", "has ended, and its result has expired"), ("delete", "was deleted")):
            connection.flushdb()
            worker.store.register(worker.info, worker.card)
            route = Route(name, client, worker)
            first = await route.call()
            job_id = first.headers["x-job-id"]
            assert (await route.call()).headers["idempotency-replayed"] == "true"
            if lose == "expire":
                assert connection.pexpire(keys.job(job_id), 1)
                await asyncio.to_thread(until_gone, connection, keys.job(job_id))
            else:
                assert (await client.delete(f"/v1/jobs/{job_id}")).status_code == 204
            before = connection.zcard(keys.JOBS)
            answers = await asyncio.gather(*(route.call() for _ in range(10)))
            for answer in answers:
                status, detail = problem(answer)
                assert status == 410
                assert job_id in detail
                assert why in detail
                assert "Use a new key" in detail
                assert "Redis" not in detail
                assert answer.json()["job_id"] == job_id
            assert connection.zcard(keys.JOBS) == before


@pytest.mark.parametrize("name", ROUTES)
async def test_a_request_whose_job_redis_lost_before_its_end_is_done_anew(
    name: str, settings: Settings, client: httpx.AsyncClient
) -> None:
    with fake_worker(settings) as worker, redis.Redis.from_url(settings.redis_url) as connection:
        route = Route(name, client, worker)
        first = await route.call()
        job_id = first.headers["x-job-id"]
        # As if the record had been evicted while the job waited: the key of a live job does not expire.
        [key] = connection.keys(keys.idempotency("*"))
        connection.persist(key)
        connection.delete(keys.job(job_id))
        answers = await asyncio.gather(*(route.call() for _ in range(10)))
        assert {answer.is_success for answer in answers} == {True}
        [again] = {answer.headers["x-job-id"] for answer in answers}
        assert again != job_id


@pytest.mark.parametrize("name", ROUTES)
@pytest.mark.parametrize("value", [b"", b"text", b"a b c", b"\xff", None])
async def test_a_damaged_key_counts_as_unused(
    name: str, value: bytes | None, settings: Settings, client: httpx.AsyncClient
) -> None:
    with fake_worker(settings) as worker, redis.Redis.from_url(settings.redis_url) as connection:
        route = Route(name, client, worker)
        await route.call()
        [key] = connection.keys(keys.idempotency("*"))
        connection.delete(key)
        if value is None:
            connection.rpush(key, "text")
        else:
            connection.set(key, value)
        again = await route.call()
        assert again.is_success
        assert "idempotency-replayed" not in again.headers
        assert (await route.call()).headers["x-job-id"] == again.headers["x-job-id"]


async def test_the_same_key_with_another_request_stays_a_mismatch_when_its_job_is_gone(
    settings: Settings, client: httpx.AsyncClient
) -> None:
    with fake_worker(settings):
        job_id = (await client.post("/v1/jobs", json=SUM, headers=WAIT)).headers["x-job-id"]
        await client.delete(f"/v1/jobs/{job_id}")
        answer = await client.post("/v1/jobs", json={**SUM, "max_tokens": 7}, headers=WAIT)
        assert (answer.status_code, answer.json()["code"]) == (422, "idempotency_mismatch")
