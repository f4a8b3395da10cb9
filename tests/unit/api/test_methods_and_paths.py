"""What every route does: it answers HEAD like GET, names its methods in `Allow`, and has one spelling of its path."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, replace
from functools import cache

import httpx
import pytest
from fastapi import FastAPI
from fastapi.responses import StreamingResponse
from pydantic import ValidationError
from starlette.routing import Route

from api.app import create_app
from api.routes import documentation
from tasks.settings import API_PATHS, Settings
from tasks.store import keys
from tests.helpers.api_client import running, server, settings_for
from tests.helpers.applications import application
from tests.helpers.fake_worker import CARD, fake_worker
from tests.helpers.openai_routes import is_openai
from tests.helpers.openapi_document import document
from tests.helpers.tokenizer_files import pickled
from worker.checkpoints.tokenizers.bpe import BpeTokenizer
from worker.checkpoints.tokenizers.export import served_blob

pytestmark = pytest.mark.anyio

CHAT_CARD = replace(CARD, tokenizer=replace(CARD.tokenizer, chat="nanochat"))
METHODS = ("DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT")
BODY = {"prompt": "1+1="}


def routes(app: FastAPI) -> dict[str, set[str]]:
    """The methods of all routes by path, without HEAD: those of the document, and its own pages."""
    found: dict[str, set[str]] = {path: {method.upper() for method in of} for path, of in document()["paths"].items()}
    for route in (*app.routes, *documentation.router.routes):
        if isinstance(route, Route):
            found.setdefault(route.path, set()).update(route.methods or ())
    return {path: methods - {"HEAD"} for path, methods in found.items()}


PATHS = routes(create_app(Settings()))
GET_PATHS = [path for path, methods in PATHS.items() if "GET" in methods]


@dataclass(frozen=True)
class Running:
    """An application with a worker, and with a job and a response that have ended."""

    app: FastAPI
    client: httpx.AsyncClient
    job_id: str
    response_id: str

    def url(self, path: str) -> str:
        ids = {"{job_id}": self.job_id, "{response_id}": self.response_id, "{model}": CARD.name}
        for name, value in ids.items():
            path = path.replace(name, value)
        return path


@cache
def tokenizer_blob() -> bytes:
    """What a worker publishes of its tokenizer."""
    return served_blob(BpeTokenizer.from_pickle(pickled(), 320), vocab_size=320, context=CARD.context)


@pytest.fixture
async def world(redis_url: str) -> AsyncIterator[Running]:
    settings = settings_for(redis_url)
    with application(settings) as app:
        async with running(app) as client:
            with fake_worker(settings, CHAT_CARD) as worker:
                worker.store.keep_tokenizer(CARD.digest, tokenizer_blob())
                done = await client.post("/v1/jobs", json=BODY, headers={"Prefer": "wait=10"})
                response = await client.post("/v1/responses", json={"input": "Hi"})
                assert (done.status_code, response.status_code) == (200, 200)
                yield Running(app, client, done.json()["id"], response.json()["id"])


def without(headers: httpx.Headers, *names: str) -> dict[str, str]:
    return {name: value for name, value in headers.items() if name not in names}


def same(head: httpx.Response, get: httpx.Response) -> None:
    """Fails unless `head` has the status and the headers of `get`, and no body."""
    assert head.content == b""
    assert head.status_code == get.status_code
    assert without(head.headers, "x-request-id", "date") == without(get.headers, "x-request-id", "date")


def test_all_families_of_routes_are_found() -> None:
    assert {"/", "/health", "/health/live", "/v1/jobs/{job_id}/stream", "/v1/workers", "/docs"} <= PATHS.keys()


def test_the_document_has_no_head() -> None:
    assert not any("head" in operations for operations in document()["paths"].values())


@pytest.mark.parametrize("path", GET_PATHS)
async def test_head_is_get_without_a_body(world: Running, path: str) -> None:
    get = await world.client.get(world.url(path))
    assert get.status_code == 200
    assert get.content
    same(await world.client.head(world.url(path)), get)


@pytest.mark.parametrize("path", [path for path in GET_PATHS if "{job_id}" in path])
async def test_head_has_the_errors_of_get(world: Running, path: str) -> None:
    unknown = path.replace("{job_id}", "job_01JZ8K6T4V9QABCDEFGHJKMNPQ")
    get = await world.client.get(unknown)
    assert get.status_code == 404
    same(await world.client.head(unknown), get)


async def test_head_is_conditional_like_get(world: Running) -> None:
    url = world.url("/v1/jobs/{job_id}")
    tag = {"If-None-Match": (await world.client.head(url)).headers["etag"]}
    get = await world.client.get(url, headers=tag)
    assert get.status_code == 304
    same(await world.client.head(url, headers=tag), get)


async def test_head_of_a_stream_opens_none(redis_url: str) -> None:
    settings = settings_for(redis_url)
    app = create_app(settings)
    async with running(app) as client:
        with fake_worker(settings) as worker:
            worker.go.clear()
            job = (await client.post("/v1/jobs", json=BODY)).json()
            # This client returns only after the last byte, and the job does not end.
            head = await client.head(job["urls"]["stream"])
            channels = [keys.state_channel(job["id"]), keys.tokens_channel(job["id"])]
            subscribed = await app.state.services.redis.pubsub_numsub(*channels)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert head.headers["x-job-id"] == job["id"]
    assert [count for _, count in subscribed] == [0, 0]


async def test_head_of_any_future_stream_ends_after_the_headers(redis_url: str) -> None:
    app = create_app(settings_for(redis_url))

    @app.get("/endless")
    async def endless() -> StreamingResponse:
        async def chunks() -> AsyncIterator[bytes]:
            raise AssertionError("the stream was opened")
            yield b""

        return StreamingResponse(chunks(), media_type="text/plain")

    async with running(app) as client:
        head = await client.head("/endless")
    assert (head.status_code, head.headers["content-type"]) == (200, "text/plain; charset=utf-8")


async def test_an_unexpected_error_has_a_head(redis_url: str) -> None:
    app = create_app(settings_for(redis_url))

    @app.get("/broken")
    async def broken() -> None:
        raise ZeroDivisionError

    async with running(app) as client:
        get = await client.get("/broken")
        assert get.status_code == 500
        same(await client.head("/broken"), get)


def test_head_over_a_connection_leaves_it_usable(redis_url: str) -> None:
    settings = settings_for(redis_url)
    with fake_worker(settings) as worker, server(settings) as url, httpx.Client(base_url=url) as client:
        worker.go.clear()
        job = client.post("/v1/jobs", json=BODY).json()
        for _ in range(2):
            same(client.head("/health/live"), client.get("/health/live"))
            same(client.head("/nothing"), client.get("/nothing"))
            head = client.head(job["urls"]["stream"])
            assert (head.status_code, head.headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
        worker.go.set()


def allow(methods: Iterable[str]) -> str:
    return ", ".join(sorted({*methods, *(["HEAD"] if "GET" in methods else [])}))


@pytest.mark.parametrize("path", PATHS)
async def test_other_methods_are_405_with_those_that_are_allowed(world: Running, path: str) -> None:
    allowed = allow(PATHS[path])
    for method in METHODS:
        if method not in allowed.split(", "):
            wrong = await world.client.request(method, world.url(path))
            assert (wrong.status_code, wrong.headers["allow"]) == (405, allowed), method


@pytest.mark.parametrize("path", [path for path in PATHS if path != "/"])
@pytest.mark.parametrize("slashes", ["/", "//"])
async def test_a_slash_at_the_end_is_404_and_no_redirect(world: Running, path: str, slashes: str) -> None:
    problem_details = path.startswith(("/v1/", "/health/")) and not is_openai(path)
    for method in METHODS:
        wrong = await world.client.request(method, world.url(path) + slashes, json=BODY)
        assert wrong.status_code == 404, method
        assert "location" not in wrong.headers
        if method == "HEAD":
            continue
        if problem_details:
            assert wrong.headers["content-type"] == "application/problem+json"
            assert wrong.json()["code"] == "not_found"
        else:
            assert wrong.json().keys() == ({"error"} if is_openai(path) else {"detail"})
        if path in document()["paths"]:
            assert "without the slash" in wrong.text


@pytest.mark.parametrize("path", PATHS)
async def test_no_answer_has_an_absolute_location(world: Running, path: str) -> None:
    for method in PATHS[path]:
        answer = await world.client.request(method, world.url(path), json=BODY)
        assert not 300 <= answer.status_code < 400
        assert answer.headers.get("location", "/").startswith("/")


def test_a_root_path_may_not_begin_like_a_path_of_the_api() -> None:
    assert {path.split("/")[1] for path in PATHS} - {""} == set(API_PATHS)
    for first in API_PATHS:
        for path in (f"/{first}", f"/{first}/llm"):
            with pytest.raises(ValidationError, match="such as /llm"):
                Settings(root_path=path)
    assert Settings(root_path="/v1beta/docs").root_path == "/v1beta/docs"


@pytest.mark.parametrize("path", ["llm", "/", "/llm/", "//llm", "/a b", "/é", "/llm?x", "http://example.com/llm"])
def test_a_root_path_that_is_no_path_is_refused(path: str) -> None:
    with pytest.raises(ValidationError, match="such as /llm"):
        Settings(root_path=path)


@pytest.mark.parametrize("sent", ["/llm", ""], ids=["the proxy leaves the prefix", "the proxy removes the prefix"])
async def test_urls_begin_with_the_root_path(redis_url: str, sent: str) -> None:
    settings = settings_for(redis_url, root_path="/llm")
    async with running(create_app(settings)) as client:
        with fake_worker(settings):
            submitted = await client.post(f"{sent}/v1/jobs", json=BODY, headers={"Prefer": "wait=10"})
            generated = await client.post(f"{sent}/generate", json=BODY)
            stream = await client.get(f"{sent}/v1/jobs/{submitted.json()['id']}/stream")
        answers = {path: await client.get(sent + path) for path in ("/docs", "/redoc", "/openapi.json", "/health/live")}
        wrong = await client.get(f"{sent}/v1/jobs/not-an-id")
        slash = await client.post(f"{sent}/generate/", json=BODY)
        head = await client.head(f"{sent}/health/live")
    job = submitted.json()
    assert submitted.headers["location"] == job["urls"]["self"] == f"/llm/v1/jobs/{job['id']}"
    assert all(url.startswith("/llm/v1/jobs/") for url in job["urls"].values())
    assert generated.headers["location"].startswith("/llm/v1/jobs/")
    assert stream.headers["location"] == job["urls"]["self"]
    assert f'"self":"{job["urls"]["self"]}"' in stream.text
    assert all(answer.status_code == 200 for answer in answers.values())
    assert "/llm/openapi.json" in answers["/docs"].text
    assert "/llm/openapi.json" in answers["/redoc"].text
    assert answers["/openapi.json"].json()["servers"] == [{"url": "/llm"}]
    assert wrong.json()["instance"] == "/llm/v1/jobs/not-an-id"
    assert (slash.status_code, slash.json().keys()) == (404, {"detail"})
    assert head.status_code == 200
