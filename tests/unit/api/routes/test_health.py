"""Health checks, CORS, request ids, and the request log."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
import structlog

from api.app import create_app
from tasks.redis_client.connections import make_sync
from tasks.store import keys
from tasks.worker_info import WorkerState
from tests.helpers.api_client import api, running, settings_for
from tests.helpers.fake_worker import fake_worker

pytestmark = pytest.mark.anyio


async def test_health_before_with_and_after_a_worker(redis_url: str) -> None:
    settings = settings_for(redis_url)
    async with api(settings) as client:
        none = await client.get("/health")
        assert (none.status_code, none.json()) == (
            200,
            {"status": "error", "model_loaded": False, "checkpoint": "unknown"},
        )
        ready = await client.get("/health/ready")
        assert (ready.status_code, ready.json()["state"]) == (503, "STARTING")
    async with api(settings) as client:
        with fake_worker(settings):
            assert (await client.get("/health")).json() == {
                "status": "ok",
                "model_loaded": True,
                "checkpoint": "step_002920",
            }
            ready = await client.get("/health/ready")
            assert (ready.status_code, ready.json()) == (
                200,
                {"state": "READY", "workers": 1, "slots": 2, "running": 0},
            )
    async with api(settings) as client:
        gone = await client.get("/health")
        assert gone.json() == {"status": "error", "model_loaded": False, "checkpoint": "step_002920"}
        ready = await client.get("/health/ready")
        assert (ready.status_code, ready.json()["state"]) == (503, "NO_WORKERS")
        assert ready.headers["retry-after"]
        assert (await client.get("/health/live")).json() == {"status": "live"}


async def test_a_busy_worker_is_ready_and_a_draining_one_is_not(redis_url: str) -> None:
    settings = settings_for(redis_url)
    with fake_worker(settings) as worker:
        worker.store.heartbeat(replace(worker.info, state=WorkerState.BUSY, running=2))
        with make_sync(settings) as redis:
            redis.zadd(keys.running(worker.card.name), {"one": time.time() * 2000, "two": time.time() * 2000})
        async with api(settings) as client:
            assert (await client.get("/health/ready")).json() == {
                "state": "BUSY",
                "workers": 1,
                "slots": 2,
                "running": 2,
            }
        worker.store.heartbeat(replace(worker.info, state=WorkerState.DRAINING))
        async with api(settings) as client:
            assert (await client.get("/health/ready")).json()["state"] == "NO_WORKERS"
            assert (await client.post("/generate", json={"prompt": "1"})).status_code == 503


async def test_while_the_only_worker_replaces_its_engine_jobs_are_accepted_and_health_says_starting(
    redis_url: str,
) -> None:
    settings = settings_for(redis_url)
    with fake_worker(settings) as worker:
        worker.store.heartbeat(replace(worker.info, state=WorkerState.STARTING))
        async with api(settings) as client:
            ready = await client.get("/health/ready")
            assert (ready.status_code, ready.json()["state"]) == (503, "STARTING")
            assert "load their checkpoint: 1" in ready.json()["detail"]
            assert (await client.get("/health")).json()["model_loaded"] is False
            assert (await client.post("/v1/jobs", json={"prompt": "1"})).status_code == 202


async def test_a_worker_that_was_never_loaded_accepts_no_jobs_for_an_old_card(redis_url: str) -> None:
    settings = settings_for(redis_url)
    with fake_worker(settings) as worker:
        worker.store.deregister(worker.info)
        worker.store.announce(replace(worker.info, state=WorkerState.STARTING, digest=""))
        async with api(settings) as client:
            assert (await client.get("/health/ready")).json()["state"] == "STARTING"
            refused = await client.post("/v1/jobs", json={"prompt": "1"})
            assert (refused.status_code, refused.json()["code"]) == (503, "no_workers")
            assert "a worker loads step_002920 now" in refused.json()["detail"]
            assert refused.headers["retry-after"]
            waiting = await client.post("/v1/jobs", json={"prompt": "1", "wait_for_worker": True})
            assert waiting.status_code == 202
            listed = (await client.get("/v1/workers")).json()["data"]
            assert [entry["state"] for entry in listed] == ["starting"]


async def test_a_worker_whose_consumer_stalls_is_not_ready(redis_url: str) -> None:
    settings = settings_for(redis_url)
    with fake_worker(settings) as worker:
        worker.store.heartbeat(replace(worker.info, state=WorkerState.STALLED))
        async with api(settings) as client:
            ready = await client.get("/health/ready")
            assert (ready.status_code, ready.json()["state"]) == (503, "STALLED")
            assert (await client.post("/v1/jobs", json={"prompt": "1"})).status_code == 503


async def test_request_ids(redis_url: str) -> None:
    async with api(settings_for(redis_url)) as client:
        given = await client.get("/health/live", headers={"X-Request-Id": "abc-1"})
        odd = await client.get("/health/live", headers={"X-Request-Id": "a b"})
        none = await client.get("/nothing")
    assert given.headers["x-request-id"] == "abc-1"
    assert odd.headers["x-request-id"] not in ("", "a b")
    assert none.headers["x-request-id"]


async def test_the_log_has_the_job_id_and_never_a_text(redis_url: str) -> None:
    settings = settings_for(redis_url)
    async with api(settings) as client:
        with fake_worker(settings), structlog.testing.capture_logs() as logs:
            response = await client.post("/generate", json={"prompt": "123+456="})
            await client.post("/generate", json={"prompt": "123+456=", "top_k": 99})
            await client.post("/generate", json={"prompt": "123+456=ä"})
    lines = [line for line in logs if line["event"] == "request"]
    assert [line["status"] for line in lines] == [200, 422, 422]
    assert lines[0]["job_id"] == response.headers["x-job-id"]
    assert (lines[0]["method"], lines[0]["path"]) == ("POST", "/generate")
    assert "123" not in str([{**line, "client": None, "job_id": None, "ms": None} for line in logs])


async def test_an_unexpected_error_is_500_without_its_message(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = settings_for(redis_url)
    app = create_app(settings)

    secret = "the prompt was 1"

    async def broken(*_: object, **__: object) -> None:
        raise RuntimeError(secret)

    async with running(app) as client:
        with fake_worker(settings), structlog.testing.capture_logs() as logs:
            monkeypatch.setattr(app.state.services.store, "submit", broken)
            legacy = await client.post("/generate", json={"prompt": "1"}, headers={"Origin": "http://localhost:3000"})
            problem = await client.post("/v1/jobs", json={"prompt": "1"})
    assert (legacy.status_code, problem.status_code) == (500, 500)
    assert legacy.json()["detail"] == problem.json()["detail"]
    assert problem.json()["code"] == "internal"
    assert legacy.headers["access-control-allow-origin"] == "http://localhost:3000"
    assert legacy.headers["x-request-id"]
    errors = [line for line in logs if line["event"] == "unexpected_error"]
    assert [line["error"] for line in errors] == ["RuntimeError", "RuntimeError"]
    assert "broken" in errors[0]["stack"]
    assert secret not in str(logs) + legacy.text + problem.text


async def test_health_is_that_of_the_checkpoint_of_a_request_without_model(redis_url: str) -> None:
    settings = settings_for(redis_url, default_checkpoint="another")
    async with api(settings) as client:
        with fake_worker(settings):
            # /generate without `model` would answer 503.
            assert (await client.get("/health")).json() == {
                "status": "error",
                "model_loaded": False,
                "checkpoint": "another",
            }
            assert (await client.post("/generate", json={"prompt": "1"})).status_code == 503
