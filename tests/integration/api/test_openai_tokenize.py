"""`/tokenize`, `/detokenize` and `/tokenizer_info`, and the names of tokens in log-probabilities."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from api.app import create_app
from tests.helpers.api_client import running, settings_for
from tests.helpers.fake_worker import CARD, fake_worker
from tests.unit.api.openai.vocabulary import BOS, EURO, Vocabularies

pytestmark = pytest.mark.anyio


@pytest.fixture
async def app(redis_url: str) -> FastAPI:
    return create_app(settings_for(redis_url))


@pytest.fixture
async def client(app: FastAPI, redis_url: str) -> AsyncIterator[httpx.AsyncClient]:
    async with running(app) as client:
        services = app.state.services
        known = replace(services.vocabularies, vocabularies=Vocabularies())
        app.state.services = replace(services, vocabularies=known)
        with fake_worker(settings_for(redis_url)):
            yield client


async def test_a_text_becomes_ids(client: httpx.AsyncClient) -> None:
    answered = await client.post("/tokenize", json={"prompt": "a€", "return_token_strs": True})
    assert answered.json() == {
        "count": 5,
        "max_model_len": 64,
        "tokens": [BOS, 0, *EURO],
        "token_strs": ["<|bos|>", "a", "bytes:\\xe2", "bytes:\\x82", "bytes:\\xac"],
    }


async def test_what_lm_eval_asks_first(client: httpx.AsyncClient) -> None:
    info: dict[str, Any] = (await client.get("/tokenizer_info")).json()
    assert info == {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<|bos|>", "eos_token": None}
    answered = await client.post("/tokenize", json={"prompt": "ab", "add_special_tokens": False})
    assert answered.json() == {"count": 2, "max_model_len": 64, "tokens": [0, 1]}


async def test_ids_become_a_text(client: httpx.AsyncClient) -> None:
    answered = await client.post("/detokenize", json={"model": CARD.name, "tokens": [BOS, 0, *EURO]})
    assert answered.json() == {"prompt": "a€"}
    assert (await client.post("/detokenize", json={"tokens": []})).json() == {"prompt": ""}


@pytest.mark.parametrize(
    ("path", "body", "status", "param"),
    [
        ("/tokenize", {}, 400, "prompt"),
        ("/tokenize", {"prompt": 3}, 400, "prompt"),
        ("/tokenize", {"model": "x", "prompt": "a"}, 404, "model"),
        ("/detokenize", {"tokens": [-1]}, 400, "tokens.0"),
        ("/detokenize", {"tokens": [32]}, 400, "tokens"),
    ],
)
async def test_wrong_bodies(
    client: httpx.AsyncClient, path: str, body: dict[str, Any], status: int, param: str
) -> None:
    refused = await client.post(path, json=body)
    assert (refused.status_code, refused.json()["error"]["param"]) == (status, param)


async def test_a_vocabulary_that_no_worker_has_published(app: FastAPI, redis_url: str) -> None:
    async with running(app) as client:
        with fake_worker(settings_for(redis_url)):
            refused = await client.get("/tokenizer_info")
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "no_workers")
    assert refused.headers["x-should-retry"] == "true"
