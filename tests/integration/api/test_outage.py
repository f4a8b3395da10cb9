"""The API while Redis is away, hangs, returns, or belongs to another version."""

from __future__ import annotations

import asyncio
import signal
import time

import pytest
import redis

from api.app import create_app
from api.jobs import queue_load
from api.jobs.catalog import Catalog
from bench.own_redis import OwnRedis
from tasks.errors import SchemaError
from tasks.store import keys
from tests.helpers.api_client import DEADLINE_S, api, eventually, running, settings_for
from tests.helpers.fake_worker import fake_worker

pytestmark = pytest.mark.anyio

BODY = {"prompt": "123+456=", "wait_for_worker": True}


async def test_without_redis_the_api_starts_answers_503_and_recovers(own_redis: OwnRedis) -> None:
    settings = settings_for(own_redis.url)
    async with api(settings) as client:
        started = time.monotonic()
        live, health, ready = [await client.get(f"/health{path}") for path in ("/live", "", "/ready")]
        assert (live.status_code, live.json()) == (200, {"status": "live"})
        assert (health.status_code, health.json()["status"], health.json()["checkpoint"]) == (200, "error", "unknown")
        assert (ready.status_code, ready.json()["state"]) == (503, "REDIS_DOWN")
        assert (await client.get("/")).json()["status"] == "loading"
        legacy = await client.post("/generate", json={"prompt": "1"})
        assert legacy.status_code == 503
        assert "Redis" in legacy.json()["detail"]
        for response in (
            await client.post("/v1/jobs", json=BODY),
            await client.get("/v1/jobs"),
            await client.get("/v1/jobs/job_01JZ8K6T4V9QABCDEFGHJKMNPQ"),
            await client.get("/v1/workers"),
        ):
            assert response.status_code == 503
            assert response.json()["code"] == "redis_unavailable"
            assert response.headers["retry-after"] == "1"
        assert time.monotonic() - started < 5

        own_redis.start()
        with fake_worker(settings):
            assert (await client.get("/health/ready")).status_code == 200
            answer = await client.post("/generate", json={"prompt": "123+456="})
        assert answer.json()["generated_text"] == "123+456=579"


async def test_a_waiting_call_survives_a_restart_of_redis(own_redis: OwnRedis) -> None:
    own_redis.start()
    settings = settings_for(own_redis.url)
    async with api(settings) as client:
        with fake_worker(settings):
            pass
        call = asyncio.create_task(client.post("/v1/jobs", json=BODY, headers={"Prefer": "wait=60"}, timeout=60))
        with redis.Redis.from_url(own_redis.url) as admin:
            await asyncio.to_thread(eventually, lambda: admin.zcard(keys.jobs_with("queued")))
        own_redis.kill()
        assert (await client.get("/v1/jobs")).status_code == 503
        assert not call.done()
        own_redis.start()
        with fake_worker(settings):
            answer = await asyncio.wait_for(call, DEADLINE_S)
    assert answer.status_code == 200
    assert answer.json()["output"]["generated_text"] == "123+456=579"


async def test_while_redis_hangs_requests_are_answered_in_time(own_redis: OwnRedis) -> None:
    own_redis.start()
    settings = settings_for(own_redis.url, redis_timeout_s=0.3)
    async with api(settings) as client:
        with fake_worker(settings):
            pass
        assert (await client.get("/v1/jobs")).status_code == 200
        own_redis.signal(signal.SIGSTOP)
        try:
            started = time.monotonic()
            answers = await asyncio.gather(
                client.post("/v1/jobs", json=BODY),
                client.get("/v1/jobs"),
                client.get("/health"),
                client.get("/health/live"),
            )
            took = time.monotonic() - started
        finally:
            own_redis.signal(signal.SIGCONT)
        assert [answer.status_code for answer in answers] == [503, 503, 200, 200]
        assert took < 3
        assert (await client.get("/v1/jobs")).status_code == 200


async def test_a_submission_that_was_answered_with_an_error_runs_no_job(
    own_redis: OwnRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Redis executes the commands that it got while it was paused, after their callers have given up."""
    own_redis.start()
    # All that a request needs to know is known, so its first command is the submission.
    monkeypatch.setattr(queue_load, "MAX_AGE_S", 600.0)
    monkeypatch.setitem(Catalog.snapshot.__kwdefaults__, "max_age_s", 600.0)
    settings = settings_for(own_redis.url, redis_timeout_s=0.5)
    async with api(settings) as client:
        with fake_worker(settings):
            pass
        kept = (await client.post("/v1/jobs", json=BODY)).json()["id"]
        own_redis.signal(signal.SIGSTOP)
        try:
            # The first of them are sent to Redis, the others wait for it.
            answers = await asyncio.gather(*(client.post("/v1/jobs", json=BODY) for _ in range(40)))
            with_key = await client.post("/v1/jobs", json=BODY, headers={"Idempotency-Key": '"one"'})
        finally:
            own_redis.signal(signal.SIGCONT)
        assert {answer.status_code for answer in (*answers, with_key)} == {503}
        again = (await client.post("/v1/jobs", json=BODY, headers={"Idempotency-Key": '"one"'})).json()["id"]

        async def listed() -> set[str]:
            return {job["id"] for job in (await client.get("/v1/jobs", params={"limit": 100})).json()["data"]}

        async with asyncio.timeout(DEADLINE_S):
            while await listed() != {kept, again}:  # noqa: ASYNC110 (nothing notifies of a deletion)
                await asyncio.sleep(0.05)


async def test_the_error_names_the_reason_why_redis_refuses_writes(own_redis: OwnRedis) -> None:
    own_redis.start()
    settings = settings_for(own_redis.url)
    async with api(settings) as client:
        with fake_worker(settings) as worker, redis.Redis.from_url(own_redis.url) as admin:
            worker.stop()
            # As a primary after a failover. No primary listens there.
            admin.replicaof("127.0.0.1", 1)  # type: ignore[no-untyped-call]
            response = await client.post("/v1/jobs", json=BODY)
            # Reads still work.
            assert (await client.get("/v1/jobs")).status_code == 200
            admin.replicaof("NO", "ONE")  # type: ignore[no-untyped-call]
    assert (response.status_code, response.json()["code"]) == (503, "redis_unavailable")
    assert "READONLY" in response.json()["detail"]


async def test_another_layout_stops_the_start(redis_url: str) -> None:
    with redis.Redis.from_url(redis_url) as admin:
        admin.set(keys.SCHEMA, "99")
    with pytest.raises(SchemaError, match="layout 99"):
        async with api(settings_for(redis_url)):
            pass


async def test_each_start_of_an_application_checks_the_layout(redis_url: str) -> None:
    app = create_app(settings_for(redis_url))
    async with running(app):
        pass
    with redis.Redis.from_url(redis_url) as admin:
        admin.set(keys.SCHEMA, "99")
    with pytest.raises(SchemaError, match="layout 99"):
        async with running(app):
            pass


async def test_another_layout_found_later_is_503(own_redis: OwnRedis) -> None:
    async with api(settings_for(own_redis.url)) as client:
        own_redis.start()
        with redis.Redis.from_url(own_redis.url) as admin:
            admin.set(keys.SCHEMA, "99")
        response = await client.get("/v1/jobs")
        assert (response.status_code, response.json()["code"]) == (503, "schema_mismatch")
        assert "layout 99" in response.json()["detail"]
        assert "layout 99" in (await client.post("/generate", json={"prompt": "1"})).json()["detail"]
        assert (await client.get("/health/ready")).json()["state"] == "SCHEMA_MISMATCH"
        assert (await client.get("/health")).json()["status"] == "error"
