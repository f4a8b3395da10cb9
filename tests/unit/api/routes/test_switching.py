"""Checkpoints that a worker can load and has not loaded yet."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import httpx
import pytest

from tasks.redis_client.connections import make_sync
from tasks.settings import Settings
from tasks.store.switching_store import Load, Offer, SwitchingStore
from tasks.switching_info import ChildState
from tests.helpers.api_client import api, settings_for
from tests.helpers.fake_worker import CARD, fake_worker
from tests.helpers.switching_worker import SWITCHING, child, named, offers, with_children

pytestmark = pytest.mark.anyio


@pytest.fixture
def settings(redis_url: str) -> Settings:
    return settings_for(redis_url)


@pytest.fixture
def store(settings: Settings) -> Iterator[SwitchingStore]:
    with make_sync(settings) as redis:
        yield SwitchingStore(redis, settings)


@pytest.fixture
async def client(settings: Settings, store: SwitchingStore, anyio_backend: str) -> AsyncIterator[httpx.AsyncClient]:
    """A client of an API that has just started. The switching worker of the test is there before."""
    async with api(settings) as client:
        yield client


async def test_the_only_offered_checkpoint_counts_as_served(settings: Settings, store: SwitchingStore) -> None:
    store.offer(SWITCHING, offers(CARD, "run"))
    async with api(settings) as client:
        assert (await client.get("/health")).json() == {"status": "ok", "model_loaded": True, "checkpoint": "run"}
        ready = await client.get("/health/ready")
        assert (ready.status_code, ready.json()) == (200, {"state": "READY", "workers": 0, "slots": 0, "running": 0})
        assert (await client.get("/info")).json()["checkpoint"] == "run"
        job = (await client.post("/v1/jobs", json={"prompt": "1"})).json()
        assert (job["model"], job["status"], job["queue"]["position"]) == ("run", "queued", 0)


async def test_a_request_must_name_one_of_several_offers(settings: Settings, store: SwitchingStore) -> None:
    store.offer(SWITCHING, offers(CARD, "one", "two"))
    async with api(settings) as client:
        refused = await client.post("/v1/jobs", json={"prompt": "1"})
        assert (refused.status_code, refused.json()["models"]) == (422, ["one", "two"])
        assert (await client.post("/v1/jobs", json={"prompt": "1", "model": "two"})).status_code == 202
        unknown = await client.post("/v1/jobs", json={"prompt": "1", "model": "three"})
        assert (unknown.status_code, unknown.json()["code"]) == (404, "model_not_found")


async def test_an_offer_that_is_new_or_gone_is_noticed_at_once(
    client: httpx.AsyncClient, store: SwitchingStore
) -> None:
    """A refusal is based on what Redis has now, and a listing on what it had half a second before."""
    assert (await client.post("/v1/jobs", json={"prompt": "1", "model": "run"})).status_code == 503
    store.offer(SWITCHING, offers(CARD, "run"))
    assert (await client.post("/v1/jobs", json={"prompt": "1", "model": "run"})).status_code == 202
    store.retract(SWITCHING)
    # The card is kept: the checkpoint is known, and has no worker.
    refused = await client.post("/v1/jobs", json={"prompt": "1", "model": "other"})
    assert refused.json()["models"] == ["run"]
    refused = await client.post("/v1/jobs", json={"prompt": "1", "model": "run"})
    assert (refused.status_code, refused.json()["code"]) == (503, "no_workers")


async def test_the_name_of_a_run_means_its_last_checkpoint(settings: Settings, store: SwitchingStore) -> None:
    found = {
        card.name: Offer(card, 1)
        for card in (named(CARD, "d4-100", step=100), named(CARD, "d4-200", step=200, latest_of="d4"))
    }
    store.offer(SWITCHING, found)
    async with api(settings.model_copy(update={"default_checkpoint": "d4"})) as client:
        for body in ({"model": "d4"}, {}):
            job = (await client.post("/v1/jobs", json={"prompt": "1", **body})).json()
            assert job["model"] == "d4-200"
        assert (await client.get("/v1/models/d4")).json()["id"] == "d4-200"
        listed = (await client.get("/v1/models")).json()["data"]
        assert [(one["id"], one["latest_of"]) for one in listed] == [("d4-100", None), ("d4-200", "d4")]
        # A new step takes over.
        older = Offer(named(CARD, "d4-200", step=200), 1)
        newer = Offer(named(CARD, "d4-300", step=300, latest_of="d4"), 1)
        store.offer(SWITCHING, {**found, "d4-200": older, "d4-300": newer})
    async with api(settings) as client:
        job = (await client.post("/v1/jobs", json={"prompt": "1", "model": "d4"})).json()
        assert job["model"] == "d4-300"


async def test_a_run_that_an_ordinary_worker_served_before_means_its_last_checkpoint_now(
    settings: Settings, store: SwitchingStore
) -> None:
    with fake_worker(settings, named(CARD, "d4")):
        pass
    store.offer(SWITCHING, {"d4-200": Offer(named(CARD, "d4-200", step=200, latest_of="d4"), 1)})
    async with api(settings) as client:
        job = (await client.post("/v1/jobs", json={"prompt": "1", "model": "d4"})).json()
        assert job["model"] == "d4-200"
    # While such a worker is there, the name is that of its checkpoint.
    with fake_worker(settings, named(CARD, "d4")):
        async with api(settings) as client:
            job = (await client.post("/v1/jobs", json={"prompt": "1", "model": "d4"})).json()
            assert job["model"] == "d4"


async def test_models_say_what_is_loaded(settings: Settings, store: SwitchingStore) -> None:
    store.offer(SWITCHING, offers(CARD, "a", "b"))
    with fake_worker(settings, named(CARD, "b")):
        async with api(settings) as client:
            listed = (await client.get("/v1/models")).json()["data"]
            assert [(one["id"], one["ready"], one["loaded"]) for one in listed] == [
                ("b", True, True),
                ("a", True, False),
            ]
    store.retract(SWITCHING)
    async with api(settings) as client:
        one = (await client.get("/v1/models/a")).json()
        assert (one["ready"], one["loaded"]) == (False, False)


async def test_switching_workers_are_listed(settings: Settings, store: SwitchingStore) -> None:
    children = (child("a"), child("b", ChildState.LOADING), child("c", ChildState.RETIRING))
    store.offer(with_children(*children), offers(CARD, "a", "b", "c", "d"))
    async with api(settings) as client:
        [listed] = (await client.get("/v1/workers")).json()["switching"]
        assert {name: listed[name] for name in ("name", "offers", "loaded", "loading", "retiring")} == {
            "name": SWITCHING.name,
            "offers": 4,
            "loaded": ["a"],
            "loading": ["b"],
            "retiring": ["c"],
        }
        assert (listed["memory_bytes"], listed["budget_bytes"]) == (180, 100)
        assert (await client.get("/v1/workers", params={"model": "d"})).json()["switching"] == [listed]
        assert (await client.get("/v1/workers", params={"model": "e"})).json()["switching"] == []


async def test_a_job_knows_how_long_it_waited_for_the_load(settings: Settings, store: SwitchingStore) -> None:
    store.offer(SWITCHING, offers(CARD, "run"))
    async with api(settings) as client:
        waiting = (await client.post("/v1/jobs", json={"prompt": "1+1="})).json()
        assert waiting["queue"]["eta_start_s"] > 1
        assert waiting["timings"]["load_s"] is None
        assert store.next_switch(SWITCHING) == Load("run")
        with fake_worker(settings, named(CARD, "run")):
            done = (await client.get(f"/v1/jobs/{waiting['id']}", params={"wait": 10})).json()
            answered = await client.post("/v1/jobs", json={"prompt": "1+1="}, headers={"Prefer": "wait=10"})
        assert 0 < done["timings"]["load_s"] < 10
        later = answered.json()
        assert (later["status"], later["timings"]["load_s"]) == ("succeeded", 0)


async def test_an_estimate_has_the_duration_of_the_last_load(settings: Settings, store: SwitchingStore) -> None:
    store.offer(SWITCHING, offers(CARD, "run"))
    async with api(settings) as client:
        first = (await client.post("/v1/jobs", json={"prompt": "1+1="})).json()
        assert store.next_switch(SWITCHING) == Load("run")
        with fake_worker(settings, named(CARD, "run")):
            done = (await client.get(f"/v1/jobs/{first['id']}", params={"wait": 10})).json()
        assert store.next_switch(SWITCHING) is None
    async with api(settings) as client:
        second = (await client.post("/v1/jobs", json={"prompt": "1+1="})).json()
        assert second["queue"]["eta_start_s"] == pytest.approx(done["timings"]["load_s"], abs=0.001)


async def test_the_header_of_an_answer_names_the_load_that_it_waited_for(
    settings: Settings, store: SwitchingStore
) -> None:
    store.offer(SWITCHING, offers(CARD, "run"))
    async with api(settings) as client, asyncio.timeout(10), asyncio.TaskGroup() as group:
        waiting = group.create_task(client.post("/generate", json={"prompt": "1+1="}))
        while (load := store.next_switch(SWITCHING)) is None:  # noqa: ASYNC110 (only Redis knows)
            await asyncio.sleep(0.01)
        assert load == Load("run")
        with fake_worker(settings, named(CARD, "run")):
            first = await waiting
            second = await client.post("/generate", json={"prompt": "1+1="})
    assert "load;dur=" in first.headers["server-timing"]
    assert "load;dur=" not in second.headers["server-timing"]
