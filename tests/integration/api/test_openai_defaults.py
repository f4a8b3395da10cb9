"""The sampling that a checkpoint's authors recommend applies on OpenAI's routes, where the request does not set it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import httpx
import pytest

from tasks.settings import Settings
from tests.helpers.api_client import api, settings_for
from tests.helpers.fake_worker import CARD, fake_worker

pytestmark = pytest.mark.anyio

DEFAULTS = {"temperature": 0.6, "top_k": 20, "top_p": 0.95, "min_p": 0.05, "repetition_penalty": 1.1}
CHATTY = replace(
    CARD,
    name="chatty",
    digest="c" * 64,
    vocab_size=64,
    default_sampling=DEFAULTS,
    tokenizer=replace(CARD.tokenizer, chat="nanochat"),
)
ROUTES: list[tuple[str, dict[str, Any]]] = [
    ("/v1/completions", {"prompt": "1+1="}),
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": "1+1="}]}),
    ("/v1/responses", {"input": "1+1="}),
]


@pytest.fixture
async def client(redis_url: str) -> AsyncIterator[httpx.AsyncClient]:
    settings: Settings = settings_for(redis_url)
    async with api(settings) as client:
        with fake_worker(settings, CHATTY):
            yield client


async def sampling_of(client: httpx.AsyncClient, url: str, body: dict[str, Any]) -> dict[str, Any]:
    """The sampling fields of the job of a request, without unset ones."""
    answered = await client.post(url, json={"model": CHATTY.name, **body})
    assert answered.status_code in (200, 202), answered.text
    job = (await client.get(f"/v1/jobs/{answered.headers['x-job-id']}")).json()
    return {name: job["input"][name] for name in DEFAULTS if job["input"].get(name) is not None}


@pytest.mark.parametrize(("url", "body"), ROUTES)
async def test_fields_that_a_request_leaves_out_get_the_defaults(
    client: httpx.AsyncClient, url: str, body: dict[str, Any]
) -> None:
    assert await sampling_of(client, url, body) == DEFAULTS
    assert await sampling_of(client, url, {**body, "temperature": None, "top_p": None}) == DEFAULTS


@pytest.mark.parametrize(("url", "body"), ROUTES)
async def test_fields_of_a_request_are_kept(client: httpx.AsyncClient, url: str, body: dict[str, Any]) -> None:
    given = {"temperature": 0, "top_p": 0.5}
    assert await sampling_of(client, url, {**body, **given}) == {**DEFAULTS, **given}


async def test_a_value_that_turns_a_field_off_is_kept_too(client: httpx.AsyncClient) -> None:
    off = {"temperature": 1, "top_k": -1, "top_p": 1, "min_p": 0, "repetition_penalty": 1}
    assert await sampling_of(client, *_with(ROUTES[0], off)) == {"temperature": 1.0}


async def test_a_response_shows_what_it_was_sampled_with(client: httpx.AsyncClient) -> None:
    response = (await client.post("/v1/responses", json={"model": CHATTY.name, "input": "1+1="})).json()
    assert (response["temperature"], response["top_p"]) == (0.6, 0.95)


async def test_the_list_of_checkpoints_has_the_defaults(client: httpx.AsyncClient) -> None:
    assert (await client.get(f"/v1/models/{CHATTY.name}")).json()["default_sampling"] == DEFAULTS


async def test_a_repeated_request_is_the_same_request(client: httpx.AsyncClient) -> None:
    headers = {"Idempotency-Key": "k"}
    url, body = ROUTES[0]
    first, again = [await client.post(url, json={"model": CHATTY.name, **body}, headers=headers) for _ in range(2)]
    assert first.headers["x-job-id"] == again.headers["x-job-id"]


@pytest.mark.parametrize("url", ["/v1/jobs", "/generate"])
async def test_other_routes_keep_their_own_defaults(client: httpx.AsyncClient, url: str) -> None:
    sent = {"prompt": "1+1=", "model": CHATTY.name}
    answered = await client.post(url, json=sent, headers={"Prefer": "wait=20"})
    assert answered.status_code in (200, 201), answered.text
    job = (await client.get("/v1/jobs")).json()["data"][0]
    assert {name: job["input"].get(name) for name in DEFAULTS} == {**dict.fromkeys(DEFAULTS), "temperature": 0.8}


def _with(route: tuple[str, dict[str, Any]], fields: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    return route[0], {**route[1], **fields}
