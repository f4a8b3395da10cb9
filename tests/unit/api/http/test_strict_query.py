"""A query parameter that a route does not have is an error, as a field that it does not have is one."""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx
import pytest

from tests.helpers.api_client import api, settings_for
from tests.helpers.fake_worker import fake_worker
from tests.helpers.openai_routes import is_openai
from tests.helpers.openapi_document import document

pytestmark = pytest.mark.anyio

#: Every operation under `/v1`, without those of OpenAI's API, whose clients may send parameters of their own.
OPERATIONS = [
    (method, path)
    for path, operations in document()["paths"].items()
    for method in operations
    if path.startswith("/v1/") and not is_openai(path)
]
#: Routes that other programs call with parameters of their own, and those of the guide, which ignores them.
LENIENT = ("/health", "/health/live", "/health/ready", "/info", "/", "/docs", "/openapi.json", "/v1/models")


@pytest.fixture
async def client(redis_url: str) -> AsyncIterator[httpx.AsyncClient]:
    settings = settings_for(redis_url)
    async with api(settings) as client:
        with fake_worker(settings):
            yield client


@pytest.mark.parametrize(("method", "path"), OPERATIONS)
async def test_an_unknown_parameter_is_422(client: httpx.AsyncClient, method: str, path: str) -> None:
    job = (await client.post("/v1/jobs", json={"prompt": "1+1="})).json()
    url = path.replace("{job_id}", job["id"])
    body = {"prompt": "1+1="} if (method, path) == ("post", "/v1/jobs") else None
    wrong = await client.request(method, url, params={"verbos": "1"}, json=body)
    assert (wrong.status_code, wrong.json()["code"]) == (422, "invalid_request")
    [error] = wrong.json()["errors"]
    assert (error["type"], error["parameter"]) == ("unknown_parameter", "verbos")
    assert "has no such query parameter" in error["detail"]
    # Nothing was done: the job is there, and no other one.
    assert [found["id"] for found in (await client.get("/v1/jobs")).json()["data"]] == [job["id"]]


async def test_the_error_names_the_parameters_of_the_route(client: httpx.AsyncClient) -> None:
    wrong = await client.get("/v1/jobs", params={"lmit": 3})
    assert "It has cursor, limit, status." in wrong.json()["detail"]


async def test_a_parameter_that_is_given_twice_is_422(client: httpx.AsyncClient) -> None:
    wrong = await client.get("/v1/jobs?limit=1&limit=2")
    assert (wrong.status_code, wrong.json()["errors"][0]["type"]) == (422, "repeated_parameter")


@pytest.mark.parametrize("path", LENIENT)
async def test_other_routes_ignore_unknown_parameters(client: httpx.AsyncClient, path: str) -> None:
    assert (await client.get(path, params={"_": "1"})).status_code == 200


async def test_generate_ignores_unknown_parameters(client: httpx.AsyncClient) -> None:
    assert (await client.post("/generate?x=1", json={"prompt": "1+1=", "stream": True})).status_code == 200


async def test_stream_as_a_field_of_a_job_is_explained(client: httpx.AsyncClient) -> None:
    wrong = await client.post("/v1/jobs", json={"prompt": "1+1=", "stream": True})
    assert wrong.status_code == 422
    [error] = wrong.json()["errors"]
    assert error["pointer"] == "#/stream"
    assert "GET /v1/jobs/{id}/stream" in error["detail"]
    assert "Accept: text/event-stream" in error["detail"]
