"""Limits that a caller may set: time in the queue, running time, total time, and jobs ahead."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest

from tasks.settings import Settings
from tests.helpers.api_client import DEADLINE_S, api, settings_for
from tests.helpers.fake_worker import fake_worker

pytestmark = pytest.mark.anyio

SUM = {"prompt": "123+456=", "temperature": 0.0}


def quick(redis_url: str, **changed: Any) -> Settings:
    """Settings of an API that reaps and polls often."""
    return settings_for(redis_url, reap_every_s=0.05, bell_poll_s=0.05, **changed)


async def over(client: httpx.AsyncClient, job: dict[str, Any]) -> dict[str, Any]:
    """The job once it is over."""
    async with asyncio.timeout(DEADLINE_S):
        while True:
            found: dict[str, Any] = (await client.get(job["urls"]["self"], params={"wait": 5})).json()
            if found["status"] not in ("queued", "running"):
                return found


async def test_the_job_object_has_the_limits(redis_url: str) -> None:
    settings = settings_for(redis_url)
    async with api(settings) as client:
        with fake_worker(settings):
            asked = {"queue_timeout_s": 60, "run_timeout_s": 2.5, "deadline_s": 100}
            job = (await client.post("/v1/jobs", json={**SUM, **asked})).json()
            assert job["limits"] == asked
            assert job["deadline_at"] is not None
            plain = (await client.post("/v1/jobs", json=SUM)).json()
            assert set(plain["limits"].values()) == {None}
            assert plain["deadline_at"] is None
            # The shorter of the two counts.
            for header, seconds in (("30s", 30), ("5m", 100)):
                shorter = await client.post("/v1/jobs", json={**SUM, **asked}, headers={"Cancel-After": header})
                assert shorter.json()["limits"]["deadline_s"] == seconds


@pytest.mark.parametrize("field", ["queue_timeout_s", "run_timeout_s", "deadline_s"])
@pytest.mark.parametrize("value", [0, -1, 604801, "soon"])
async def test_limits_out_of_bounds_are_refused(redis_url: str, field: str, value: object) -> None:
    async with api(settings_for(redis_url)) as client:
        answer = await client.post("/v1/jobs", json={**SUM, field: value})
    assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, f"#/{field}")


@pytest.mark.parametrize(("field", "code"), [("queue_timeout_s", "start_timeout"), ("deadline_s", "deadline_exceeded")])
async def test_a_job_that_is_not_started_in_time_expires(redis_url: str, field: str, code: str) -> None:
    settings = quick(redis_url)
    async with api(settings) as client:
        with fake_worker(settings):
            pass
        job = (await client.post("/v1/jobs", json={**SUM, "wait_for_worker": True, field: 0.1})).json()
        expired = await over(client, job)
        assert (expired["status"], expired["error"]["code"]) == ("expired", code)
        assert (expired["output"]["finish_reason"], expired["output"]["completion"]) == ("deadline", "")
        result = await client.get(job["urls"]["result"])
        assert (result.status_code, result.json()["code"]) == (410, code)


@pytest.mark.parametrize("how", ["Cancel-After", "deadline_s"])
async def test_a_synchronous_call_ends_when_the_time_of_its_job_is_over(redis_url: str, how: str) -> None:
    settings = quick(redis_url)
    async with api(settings) as client:
        with fake_worker(settings) as worker:
            # The worker takes this job, and no other until it is over.
            worker.go.clear()
            await client.post("/v1/jobs", json=SUM)
            if how == "Cancel-After":
                answer = await client.post("/generate", json=SUM, headers={how: "0.1"})
                assert "deadline passed" in answer.json()["detail"]
                assert answer.status_code == 504
                assert answer.headers["x-should-retry"] == "false"
            else:
                answer = await client.post("/v1/jobs", json={**SUM, how: 0.1}, headers={"Prefer": "wait=10"})
                assert (answer.status_code, answer.json()["status"]) == (200, "expired")


async def test_a_malformed_cancel_after_is_an_error_in_the_routes_format(redis_url: str) -> None:
    async with api(settings_for(redis_url)) as client:
        headers = {"Cancel-After": "tomorrow"}
        legacy = await client.post("/generate", json=SUM, headers=headers)
        assert (legacy.status_code, legacy.json()["detail"][0]["loc"]) == (422, ["header", "cancel-after"])
        problem = await client.post("/v1/jobs", json=SUM, headers=headers)
        assert (problem.status_code, problem.json()["code"]) == (422, "invalid_request")


async def test_cancel_after_is_part_of_the_fingerprint(redis_url: str) -> None:
    settings = settings_for(redis_url)
    async with api(settings) as client:
        with fake_worker(settings):
            for path in ("/generate", "/v1/jobs"):
                first = {"Idempotency-Key": f'"{path}"', "Cancel-After": "30s"}
                assert (await client.post(path, json=SUM, headers=first)).status_code < 300
                again = await client.post(path, json=SUM, headers={**first, "Cancel-After": "0m30s"})
                assert again.headers["idempotency-replayed"] == "true"
                other = await client.post(path, json=SUM, headers={**first, "Cancel-After": "31s"})
                assert other.status_code == 422


async def test_a_full_queue_estimates_retry_after(redis_url: str) -> None:
    settings = settings_for(redis_url, max_queued_jobs=2)
    async with api(settings) as client:
        with fake_worker(settings) as worker:
            assert (await client.post("/generate", json=SUM)).status_code == 200
            worker.go.clear()
            # One job runs, and two are queued.
            assert (await client.post("/v1/jobs", json=SUM)).status_code == 202
            await asyncio.to_thread(worker.claimed.get, timeout=DEADLINE_S)
            await asyncio.to_thread(worker.claimed.get, timeout=DEADLINE_S)
            for _ in range(2):
                assert (await client.post("/v1/jobs", json=SUM)).status_code == 202
            full = await client.post("/v1/jobs", json=SUM)
            legacy = await client.post("/generate", json=SUM)
    assert (full.status_code, full.json()["code"]) == (429, "queue_full")
    assert legacy.status_code == 429
    for answer in (full, legacy):
        assert 1 <= int(answer.headers["retry-after"]) <= 60


async def test_a_caller_may_limit_the_jobs_ahead(redis_url: str) -> None:
    settings = settings_for(redis_url)
    async with api(settings) as client:
        with fake_worker(settings):
            pass
        waiting = {**SUM, "wait_for_worker": True}
        for _ in range(3):
            assert (await client.post("/v1/jobs", json=waiting)).status_code == 202
        refused = await client.post("/v1/jobs", json={**waiting, "max_queue_position": 2})
        assert (refused.status_code, refused.json()["code"]) == (429, "max_queue_position")
        assert "3 jobs" in refused.json()["detail"]
        assert int(refused.headers["retry-after"]) >= 1
        urgent = await client.post("/v1/jobs", json={**waiting, "max_queue_position": 0, "priority": 0})
        assert (urgent.status_code, urgent.json()["queue"]["position"]) == (202, 0)
        accepted = await client.post("/v1/jobs", json={**waiting, "max_queue_position": 4})
        assert (accepted.status_code, accepted.json()["queue"]["position"]) == (202, 4)
        listed = (await client.get("/v1/jobs")).json()["data"]
        assert [job["queue"]["position"] for job in listed] == [4, 0, 3, 2, 1]
        assert {job["queue"]["tokens_ahead"] for job in listed} == {0, 100, 200, 300, 400}


async def test_estimates_are_known_after_the_first_finished_job(redis_url: str) -> None:
    settings = settings_for(redis_url)
    async with api(settings) as client:
        with fake_worker(settings) as worker:
            worker.go.clear()
            first = (await client.post("/v1/jobs", json=SUM)).json()
            assert first["queue"]["eta_finish_s"] is None
            await asyncio.to_thread(worker.claimed.get, timeout=DEADLINE_S)
            await asyncio.sleep(0.05)  # the job takes at least this long, so that no duration is rounded to 0 ms
            worker.go.set()
            await over(client, first)
            worker.go.clear()
            await asyncio.sleep(0.25)  # until the snapshot of the queue, which is used for 0.2 s, is too old
            jobs = [await client.post("/v1/jobs", json=SUM) for _ in range(4)]
            places = [answer.json()["queue"] for answer in jobs]
        finishes = [place["eta_finish_s"]["p50"] for place in places]
        assert all(finish > 0 for finish in finishes)
        assert all(place["eta_finish_s"]["p90"] >= place["eta_finish_s"]["p50"] for place in places)
        assert all(1 <= int(answer.headers["retry-after"]) <= 60 for answer in jobs)
