"""What the API says about a job whose record is damaged, and that all other jobs are answered as usual."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest
import redis
from structlog.testing import capture_logs

from tasks.store import keys
from tests.helpers.api_client import DEADLINE_S, api, settings_for
from tests.helpers.fake_worker import fake_worker

pytestmark = pytest.mark.anyio

SUM = {"prompt": "1+2=", "temperature": 0.0}
SECRET = "s3cret"


async def post(client: httpx.AsyncClient, **body: Any) -> dict[str, Any]:
    job: dict[str, Any] = (await client.post("/v1/jobs", json={**SUM, "wait_for_worker": True, **body})).json()
    return job


@pytest.mark.parametrize("field", ["losses", "checkpoint", "status", "input", "created_at", "metadata", "tokens"])
async def test_every_route_shows_the_job_as_failed(redis_url: str, field: str) -> None:
    settings = settings_for(redis_url)
    routes = ("", "/result", "/stream", "?wait=5")
    async with api(settings) as client:
        with fake_worker(settings) as worker, redis.Redis.from_url(redis_url) as connection:
            worker.go.clear()
            await asyncio.gather(*(post(client) for _ in range(3)))
            for route in routes:
                job = await post(client)
                connection.hset(keys.job(job["id"]), field, f"{SECRET}\udcff".encode("utf-8", "surrogateescape"))
                with capture_logs() as logs:
                    answer = await client.get(f"/v1/jobs/{job['id']}{route}")
                    shown = (await client.get(job["urls"]["self"])).json()
                assert (shown["status"], shown["error"]["code"]) == ("failed", "record_damaged")
                assert shown["error"]["retryable"] is True
                if route == "/result":
                    assert (answer.status_code, answer.json()["code"]) == (409, "record_damaged")
                else:
                    assert answer.status_code == 200
                    assert "record_damaged" in answer.text
                assert SECRET not in answer.text
                assert SECRET not in str(logs)
                retried = await client.post(job["urls"]["retry"])
                assert (retried.status_code, retried.json()["code"]) == (409, "not_retryable")
                cancelled = await client.post(job["urls"]["cancel"])
                assert (cancelled.status_code, cancelled.json()["status"]) == (200, "failed")
            listed = (await client.get("/v1/jobs")).json()
            assert len(listed["data"]) == 3 + len(routes)
            worker.go.set()
            done = (await client.post("/generate", json=SUM)).json()
            assert done["generated_text"] == "1+2=3"


async def test_a_call_that_waits_for_a_damaged_job_gets_a_clear_error(redis_url: str) -> None:
    settings = settings_for(redis_url, bell_poll_s=0.05)
    async with api(settings) as client:
        with fake_worker(settings) as worker, redis.Redis.from_url(redis_url) as connection:
            worker.go.clear()
            waiting = asyncio.create_task(client.post("/generate", json=SUM))
            job_id = await asyncio.to_thread(worker.claimed.get, timeout=DEADLINE_S)
            connection.set(keys.job(job_id), SECRET)
            answer = await waiting
            assert answer.status_code == 500
            assert "record in Redis was damaged" in answer.json()["detail"]
            assert "Send the request again" in answer.json()["detail"]
            assert answer.json()["job_id"] == job_id


async def test_lists_leave_out_what_cannot_be_mended_now(redis_url: str) -> None:
    settings = settings_for(redis_url)
    async with api(settings) as client:
        with fake_worker(settings) as worker, redis.Redis.from_url(redis_url) as connection:
            worker.go.clear()
            bad, good = await post(client), await post(client)
            connection.hset(keys.job(bad["id"]), "created_at", SECRET)
            # It would fail, because a replica takes no writes.
            worker.stop()
            connection.replicaof("127.0.0.1", 1)
            try:
                answer = await client.get("/v1/jobs")
            finally:
                connection.replicaof("NO", "ONE")
            assert [job["id"] for job in answer.json()["data"]] == [good["id"]]
