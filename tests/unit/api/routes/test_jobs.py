"""`/v1/jobs`: submit, read, long poll, list, result, cancel."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest

from api.schemas.jobs import JobResponse
from tasks.job import ErrorCode, Job, JobError
from tests.helpers.api_client import api, settings_for
from tests.helpers.fake_worker import fake_worker

pytestmark = pytest.mark.anyio

SUM = {"prompt": "123+456=", "temperature": 0.0}


async def submit(client: httpx.AsyncClient, **fields: Any) -> dict[str, Any]:
    response = await client.post("/v1/jobs", json={**SUM, **fields})
    assert response.status_code == 202, response.text
    found: dict[str, Any] = response.json()
    return found


async def finished(client: httpx.AsyncClient, job: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = (await client.get(job["urls"]["self"], params={"wait": 10})).json()
    assert found["status"] not in ("queued", "running")
    return found


async def reached(client: httpx.AsyncClient, job: dict[str, Any], **wanted: Any) -> dict[str, Any]:
    """The job, as soon as it has the wanted values. Long polls by version until then."""
    while not wanted.items() <= job.items():
        response = await client.get(job["urls"]["self"], params={"wait": 10, "after_version": job["version"]})
        assert response.json()["version"] > job["version"], "the job has not changed"
        job = response.json()
    return job


async def test_submit_and_read(redis_url: str) -> None:
    settings = settings_for(redis_url)
    async with api(settings) as client:
        with fake_worker(settings):
            response = await client.post("/v1/jobs", json={**SUM, "metadata": {"run": "7"}, "priority": 2})
            assert response.status_code == 202
            job = response.json()
            assert response.headers["location"] == job["urls"]["self"] == f"/v1/jobs/{job['id']}"
            assert response.headers["x-job-id"] == job["id"]
            assert response.headers["retry-after"]
            done = await finished(client, job)
    JobResponse.model_validate(done)
    assert done["status"] == "succeeded"
    assert done["output"] == {
        "generated_text": "123+456=579",
        "completion": "579",
        "tokens_generated": 3,
        "finish_reason": "stop",
        "tool_calls": [],
        "logprobs": None,
        "prompt_logprobs": None,
    }
    assert done["usage"] == {"prompt_tokens": 9, "completion_tokens": 3, "total_tokens": 12, "cached_tokens": None}
    assert done["queue"] == {
        "priority": 2,
        "position": None,
        "tokens_ahead": None,
        "eta_start_s": None,
        "eta_finish_s": None,
        "as_of": None,
    }
    assert done["metadata"] == {"run": "7"}
    assert done["attempt"] == 1
    assert done["worker"] == "step_002920@test"
    assert done["created_at"].endswith("Z")
    assert len(done["created_at"]) == len("2026-01-02T03:04:05.678Z")
    assert done["expires_at"] > done["finished_at"] >= done["created_at"]
    assert done["timings"]["total_s"] >= 0


async def test_prefer_wait_answers_200_when_it_is_over(redis_url: str) -> None:
    settings = settings_for(redis_url)
    async with api(settings) as client:
        with fake_worker(settings) as worker:
            response = await client.post("/v1/jobs", json=SUM, headers={"Prefer": "wait=10"})
            assert response.status_code == 200
            assert response.json()["status"] == "succeeded"
            assert response.headers["preference-applied"] == "wait=10"
            worker.go.clear()
            late = await client.post("/v1/jobs", json=SUM, headers={"Prefer": "respond-async, wait=1"})
    assert late.status_code == 202
    assert late.headers["preference-applied"] == "respond-async, wait=1"
    assert "Prefer" in late.headers["vary"]


async def test_a_failed_job_is_returned_as_a_job_not_as_an_error(redis_url: str) -> None:
    settings = settings_for(redis_url)
    async with api(settings) as client:
        with fake_worker(settings) as worker:
            worker.error = JobError(ErrorCode.INTERNAL, "It broke.", retryable=False)
            response = await client.post("/v1/jobs", json=SUM, headers={"Prefer": "wait=10"})
            result = await client.get(response.json()["urls"]["result"])
    assert response.status_code == 200
    assert response.json()["error"] == {"code": "internal", "message": "It broke.", "retryable": False}
    assert result.status_code == 409
    assert result.headers["content-type"] == "application/problem+json"
    problem = result.json()
    assert (problem["code"], problem["status"]) == ("internal", 409)
    assert problem["output"]["generated_text"] == "123+456=57"


async def test_position_in_the_queue(redis_url: str) -> None:
    settings = settings_for(redis_url)
    async with api(settings) as client:
        with fake_worker(settings) as worker:
            worker.go.clear()
            running = await reached(client, await submit(client), status="running")
            waiting = [await submit(client) for _ in range(3)]
            positions = [(await client.get(job["urls"]["self"])).json()["queue"]["position"] for job in waiting]
            assert positions == [0, 1, 2]
            assert running["queue"]["position"] is None
            worker.go.set()
            for job in waiting:
                assert (await finished(client, job))["queue"]["position"] is None


async def test_a_running_job_shows_its_text_so_far(redis_url: str) -> None:
    settings = settings_for(redis_url)
    async with api(settings) as client:
        with fake_worker(settings) as worker:
            worker.go.clear()
            job = await submit(client)
            while job["progress"]["tokens_generated"] < 2:
                job = (
                    await client.get(job["urls"]["self"], params={"wait": 10, "after_version": job["version"]})
                ).json()
            assert job["status"] == "running"
            assert job["output"]["generated_text"] == "123+456=57"
            assert job["output"]["tokens_generated"] == 2
            [listed] = (await client.get("/v1/jobs")).json()["data"]
            assert listed["output"]["completion"] is None
            result = await client.get(job["urls"]["result"])
            assert result.status_code == 202
            assert result.headers["retry-after"]


async def test_the_etag_changes_with_the_position(redis_url: str) -> None:
    """A position changes without a change of the job itself."""
    settings = settings_for(redis_url)
    async with api(settings) as client:
        with fake_worker(settings) as worker:
            worker.go.clear()
            await reached(client, await submit(client), status="running")
            ahead, job = [await submit(client) for _ in range(2)]
            url = job["urls"]["self"]
            first = await client.get(url)
            same = await client.get(url, headers={"If-None-Match": first.headers["etag"]})
            assert (same.status_code, same.content, same.headers["etag"]) == (304, b"", first.headers["etag"])
            assert (await client.post(ahead["urls"]["cancel"])).status_code == 200
            moved = await client.get(url, headers={"If-None-Match": first.headers["etag"]})
            before, after = first.json(), moved.json()
            assert (before["queue"]["position"], after["queue"]["position"]) == (1, 0)
            assert before["version"] == after["version"]
            worker.go.set()


async def test_a_long_poll_ends_when_the_time_is_over(redis_url: str) -> None:
    settings = settings_for(redis_url, long_poll_max_s=0.2)
    async with api(settings) as client:
        with fake_worker(settings) as worker:
            worker.go.clear()
            job = await submit(client)
            response = await client.get(job["urls"]["self"], params={"wait": 1000})
    assert response.status_code == 200
    assert response.json()["status"] in ("queued", "running")


async def test_entity_tags(redis_url: str) -> None:
    settings = settings_for(redis_url)
    async with api(settings) as client:
        with fake_worker(settings):
            done = await finished(client, await submit(client))
            response = await client.get(done["urls"]["self"])
            etag = response.headers["etag"]
            for given in (etag, etag.removeprefix("W/"), f'"0", {etag}', "*"):
                same = await client.get(done["urls"]["self"], headers={"If-None-Match": given})
                assert (same.status_code, same.content) == (304, b"")
            other = await client.get(done["urls"]["self"], headers={"If-None-Match": '"0"'})
            assert other.status_code == 200


async def test_result(redis_url: str) -> None:
    settings = settings_for(redis_url)
    async with api(settings) as client:
        with fake_worker(settings):
            job = await submit(client)
            response = await client.get(job["urls"]["result"], params={"wait": 10})
    assert response.status_code == 200
    assert response.json() == {
        "prompt": "123+456=",
        "generated_text": "123+456=579",
        "tokens_generated": 3,
        "model": "step_002920",
        "finish_reason": "stop",
        "usage": {"prompt_tokens": 9, "completion_tokens": 3, "total_tokens": 12, "cached_tokens": None},
        "job_id": job["id"],
    }


async def test_cancel_a_waiting_job(redis_url: str) -> None:
    settings = settings_for(redis_url)
    async with api(settings) as client:
        with fake_worker(settings):
            pass
        job = await submit(client, wait_for_worker=True)
        response = await client.post(job["urls"]["cancel"])
        assert response.status_code == 200
        assert response.json()["status"] == "cancelled"
        again = await client.post(job["urls"]["cancel"])
        assert (again.status_code, again.json()) == (200, response.json())
        result = await client.get(job["urls"]["result"])
        assert (result.status_code, result.json()["code"]) == (409, "cancelled")


async def test_cancel_a_running_job_keeps_its_text(redis_url: str) -> None:
    settings = settings_for(redis_url)
    async with api(settings) as client:
        with fake_worker(settings) as worker:
            worker.go.clear()
            job = await reached(client, await submit(client), status="running")
            response = await client.post(job["urls"]["cancel"])
            assert response.status_code == 202
            assert response.json()["cancel_requested"] is True
            done = await finished(client, job)
    assert done["status"] == "cancelled"
    assert done["output"]["finish_reason"] == "cancelled"
    assert done["output"]["completion"] == "57"
    assert done["cancel"]["latency_ms"] >= 0


async def test_cancel_after_the_end_changes_nothing(redis_url: str) -> None:
    settings = settings_for(redis_url)
    async with api(settings) as client:
        with fake_worker(settings):
            done = await finished(client, await submit(client))
            response = await client.post(done["urls"]["cancel"])
    assert (response.status_code, response.json()) == (200, done)


async def test_list_pages_through_all_jobs_newest_first(redis_url: str) -> None:
    settings = settings_for(redis_url)
    async with api(settings) as client:
        with fake_worker(settings):
            made = [(await finished(client, await submit(client)))["id"] for _ in range(5)]
            cancelled = await submit(client, wait_for_worker=True)
            await client.post(cancelled["urls"]["cancel"])
            seen: list[str] = []
            cursor: str | None = None
            while True:
                params: dict[str, str | int] = {
                    "limit": 2,
                    "status": "succeeded",
                    **({"cursor": cursor} if cursor else {}),
                }
                page = (await client.get("/v1/jobs", params=params)).json()
                seen += [job["id"] for job in page["data"]]
                cursor = page["next_cursor"]
                if cursor is None:
                    break
    assert seen[-5:] == made[::-1]
    assert len(seen) == len(set(seen))


@pytest.mark.parametrize("params", [{"limit": 0}, {"limit": 101}, {"status": "done"}, {"cursor": "x"}])
async def test_list_refuses_invalid_parameters(redis_url: str, params: dict[str, Any]) -> None:
    async with api(settings_for(redis_url)) as client:
        response = await client.get("/v1/jobs", params=params)
    assert response.status_code == 422
    assert response.headers["content-type"] == "application/problem+json"
    assert response.json()["errors"][0]["parameter"] == next(iter(params))


@pytest.mark.parametrize(
    "job_id", ["job_01JZ8K6T4V9QABCDEFGHJKMNPQ", "not-an-id", "job_01", "job_" + "9" * 26, "%00", "job_*"]
)
async def test_an_unknown_id_is_404(redis_url: str, job_id: str) -> None:
    async with api(settings_for(redis_url)) as client:
        answers = [
            await client.get(f"/v1/jobs/{job_id}"),
            await client.get(f"/v1/jobs/{job_id}", params={"wait": 5}),
            await client.get(f"/v1/jobs/{job_id}/result"),
            await client.post(f"/v1/jobs/{job_id}/cancel"),
        ]
    for response in answers:
        assert response.status_code == 404
        assert response.headers["content-type"] == "application/problem+json"
        assert response.json()["code"] == "not_found"


async def test_wait_for_worker(redis_url: str) -> None:
    settings = settings_for(redis_url)
    async with api(settings) as client:
        unknown = await client.post("/v1/jobs", json={**SUM, "wait_for_worker": True})
        assert (unknown.status_code, unknown.json()["code"]) == (503, "model_not_loaded")
        with fake_worker(settings):
            pass
        refused = await client.post("/v1/jobs", json=SUM)
        assert (refused.status_code, refused.json()["code"]) == (503, "no_workers")
        assert refused.json()["retryable"] is True
        assert refused.headers["retry-after"]
        job = await submit(client, wait_for_worker=True)
        assert (job["status"], job["queue"]["position"]) == ("queued", 0)
        with fake_worker(settings):
            assert (await finished(client, job))["status"] == "succeeded"


@pytest.mark.parametrize(
    ("fields", "pointer"),
    [
        ({"promt": "1"}, "#/promt"),
        ({"max_tokens": 0}, "#/max_tokens"),
        ({"priority": 10}, "#/priority"),
        ({"result_ttl_s": 59}, "#/result_ttl_s"),
        ({"metadata": {"k": "v" * 513}}, "#/metadata/k"),
        ({"metadata": {str(i): "" for i in range(17)}}, "#/metadata"),
        ({"prompt": "ü"}, "#/prompt"),
        ({"top_k": 33}, "#/top_k"),
    ],
)
async def test_errors_are_problem_details(redis_url: str, fields: dict[str, Any], pointer: str) -> None:
    settings = settings_for(redis_url)
    async with api(settings) as client:
        with fake_worker(settings):
            response = await client.post("/v1/jobs", json={**SUM, **fields})
    assert response.status_code == 422
    assert response.headers["content-type"] == "application/problem+json"
    problem = response.json()
    assert problem["code"] == "invalid_request"
    assert problem["status"] == 422
    assert isinstance(problem["detail"], str)
    assert problem["errors"][0]["pointer"] == pointer


async def test_simultaneous_requests_with_the_same_key_make_one_job(redis_url: str) -> None:
    settings = settings_for(redis_url)
    async with api(settings) as client:
        with fake_worker(settings):
            headers = {"Idempotency-Key": "k-1"}
            calls = [client.post("/v1/jobs", json=SUM, headers=headers) for _ in range(100)]
            responses = await asyncio.gather(*calls)
            assert len({response.json()["id"] for response in responses}) == 1
            assert sum("idempotency-replayed" not in response.headers for response in responses) == 1
            assert len((await client.get("/v1/jobs")).json()["data"]) == 1
            other = await client.post("/v1/jobs", json={**SUM, "max_tokens": 1}, headers=headers)
            # The same key on another route is a different key.
            separate = await client.post("/generate", json=SUM, headers=headers)
    assert (other.status_code, other.json()["code"]) == (422, "idempotency_mismatch")
    assert separate.headers["x-job-id"] != responses[0].json()["id"]


async def test_a_proxys_prefix_is_in_every_url(redis_url: str) -> None:
    settings = settings_for(redis_url)
    async with api(settings) as client:
        transport = client._transport
        assert isinstance(transport, httpx.ASGITransport)
        transport.root_path = "/llm"
        with fake_worker(settings):
            response = await client.post("/llm/v1/jobs", json=SUM)
            wrong = await client.get("/llm/v1/jobs/not-an-id")
    assert wrong.json()["code"] == "not_found"
    assert response.headers["location"] == response.json()["urls"]["self"] == f"/llm/v1/jobs/{response.json()['id']}"


async def test_workers(redis_url: str) -> None:
    settings = settings_for(redis_url)
    async with api(settings) as client:
        with fake_worker(settings):
            [worker] = (await client.get("/v1/workers")).json()["data"]
            assert worker["name"] == "step_002920@test"
            assert (worker["model"], worker["state"], worker["slots"]) == ("step_002920", "idle", 2)
            assert (await client.get("/v1/workers", params={"model": "other"})).json()["data"] == []


async def test_a_long_answer_arrives_whole(redis_url: str) -> None:
    settings = settings_for(redis_url)

    def say(job: Job) -> str:
        return "héllo ✓ " * 20

    async with api(settings) as client:
        with fake_worker(settings, say=say):
            done = await finished(client, await submit(client, max_tokens=2048))
    assert done["output"]["completion"] == "héllo ✓ " * 20
