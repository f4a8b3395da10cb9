"""Repeating and deleting jobs."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest

from tests.helpers.api_client import DEADLINE_S, api, settings_for
from tests.helpers.fake_worker import FakeWorker, fake_worker

pytestmark = pytest.mark.anyio

SUM = {
    "prompt": "123+456=",
    "temperature": 0.5,
    "max_tokens": 9,
    "top_k": 3,
    "priority": 2,
    "metadata": {"run": "7"},
    "deadline_s": 600,
    "result_ttl_s": 70,
}
UNKNOWN = "job_01JZ8K6T4V9QABCDEFGHJKMNPQ"


async def cancelled(client: httpx.AsyncClient, worker: FakeWorker) -> dict[str, Any]:
    """A job that was cancelled while it ran."""
    worker.go.clear()
    job = (await client.post("/v1/jobs", json=SUM)).json()
    await asyncio.to_thread(worker.claimed.get, timeout=DEADLINE_S)
    await client.post(job["urls"]["cancel"])
    found: dict[str, Any] = (await client.get(job["urls"]["self"], params={"wait": 10})).json()
    assert found["status"] == "cancelled"
    worker.go.set()
    return found


async def test_a_repeated_job_has_the_same_request(redis_url: str) -> None:
    settings = settings_for(redis_url)
    async with api(settings) as client:
        with fake_worker(settings) as worker:
            old = await cancelled(client, worker)
            answer = await client.post(old["urls"]["retry"])
            new = answer.json()
            assert answer.status_code == 202
            assert answer.headers["location"] == new["urls"]["self"] != old["urls"]["self"]
            assert (new["retry_of"], old["retry_of"]) == (old["id"], None)
            for same in ("input", "metadata", "limits", "model"):
                assert new[same] == old[same]
            assert new["queue"]["priority"] == 2
            done = (await client.get(new["urls"]["self"], params={"wait": 10})).json()
            assert (done["status"], done["output"]["completion"]) == ("succeeded", "579")
            # The old job stays unchanged.
            assert (await client.get(old["urls"]["self"])).json() == old


async def test_only_a_job_that_is_over_without_success_can_be_repeated(redis_url: str) -> None:
    settings = settings_for(redis_url)
    async with api(settings) as client:
        with fake_worker(settings) as worker:
            done = (await client.post("/v1/jobs", json=SUM, headers={"Prefer": "wait=10"})).json()
            assert done["status"] == "succeeded"
            worker.go.clear()
            live = (await client.post("/v1/jobs", json=SUM)).json()
            for job, word in ((done, "succeeded"), (live, "cancel it first")):
                refused = await client.post(job["urls"]["retry"])
                assert (refused.status_code, refused.json()["code"]) == (409, "not_retryable")
                assert word in refused.json()["detail"]
                assert refused.json()["job_id"] == job["id"]
        assert (await client.post(f"/v1/jobs/{UNKNOWN}/retry")).status_code == 404


async def test_a_retry_that_is_sent_twice_with_a_key_makes_one_job(redis_url: str) -> None:
    settings = settings_for(redis_url)
    async with api(settings) as client:
        with fake_worker(settings) as worker:
            old = await cancelled(client, worker)
            key = {"Idempotency-Key": '"again"'}
            answers = await asyncio.gather(*(client.post(old["urls"]["retry"], headers=key) for _ in range(20)))
            assert len({answer.json()["id"] for answer in answers}) == 1
            assert sum("idempotency-replayed" in answer.headers for answer in answers) == 19
            other = await cancelled(client, worker)
            refused = await client.post(other["urls"]["retry"], headers=key)
            assert (refused.status_code, refused.json()["code"]) == (422, "idempotency_mismatch")


async def test_a_retry_without_a_worker_is_refused(redis_url: str) -> None:
    settings = settings_for(redis_url)
    async with api(settings) as client:
        with fake_worker(settings) as worker:
            old = await cancelled(client, worker)
    # A new application has no snapshot of the catalog that still shows the worker.
    async with api(settings) as client:
        answer = await client.post(old["urls"]["retry"])
    assert (answer.status_code, answer.json()["code"]) == (503, "no_workers")


async def test_a_deleted_job_is_410_on_every_route(redis_url: str) -> None:
    settings = settings_for(redis_url)
    async with api(settings) as client:
        with fake_worker(settings):
            job = (await client.post("/v1/jobs", json=SUM, headers={"Prefer": "wait=10"})).json()
        answer = await client.delete(job["urls"]["self"])
        assert (answer.status_code, answer.content) == (204, b"")
        for method, path in (
            ("GET", job["urls"]["self"]),
            ("GET", job["urls"]["result"]),
            ("GET", job["urls"]["stream"]),
            ("POST", job["urls"]["cancel"]),
            ("POST", job["urls"]["retry"]),
        ):
            gone = await client.request(method, path)
            assert (gone.status_code, gone.json()["code"], gone.json()["job_id"]) == (410, "gone", job["id"])
        assert (await client.get("/v1/jobs")).json()["data"] == []
        assert (await client.delete(job["urls"]["self"])).status_code == 204
        for unknown in (UNKNOWN, "not-an-id"):
            assert (await client.delete(f"/v1/jobs/{unknown}")).status_code == 404


async def test_clients_that_wait_for_a_deleted_job_get_410(redis_url: str) -> None:
    settings = settings_for(redis_url)
    async with api(settings) as client:
        with fake_worker(settings) as worker:
            worker.go.clear()
            headers = {"Idempotency-Key": '"k"'}
            waiting = asyncio.create_task(client.post("/generate", json={"prompt": "1+1="}, headers=headers))
            job_id = await asyncio.to_thread(worker.claimed.get, timeout=DEADLINE_S)
            polling = asyncio.create_task(client.get(f"/v1/jobs/{job_id}", params={"wait": 10}))
            await client.delete(f"/v1/jobs/{job_id}")
            answer = await asyncio.wait_for(waiting, DEADLINE_S)
            assert (answer.status_code, answer.json()["job_id"]) == (410, job_id)
            assert "deleted" in answer.json()["detail"]
            assert (await asyncio.wait_for(polling, DEADLINE_S)).status_code in (200, 410)
            again = await client.post("/generate", json={"prompt": "1+1="}, headers=headers)
            assert again.status_code == 410
