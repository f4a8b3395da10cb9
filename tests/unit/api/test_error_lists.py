"""However much of a request is wrong, the answer is short, and so is the work."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from api.http.problems import MAX_ERRORS
from api.http.strict_json import MAX_MEMBERS
from tests.helpers.api_client import api, settings_for

pytestmark = pytest.mark.anyio

JSON = {"Content-Type": "application/json"}
ROUTES = ("/generate", "/v1/jobs")
#: Largest answer to any wrong request, in bytes.
MAX_ANSWER = 40_000
#: Nearly as much as a body may have.
LONG = "x" * 1_000_000


@pytest.fixture
async def client(redis_url: str) -> AsyncIterator[httpx.AsyncClient]:
    async with api(settings_for(redis_url)) as client:
        yield client


def members(count: int, value: Any = 1) -> dict[str, Any]:
    return {f"x{index}": value for index in range(count)}


async def post(client: httpx.AsyncClient, route: str, body: Any) -> httpx.Response:
    answer = await client.post(route, content=json.dumps(body), headers=JSON)
    assert answer.status_code == 422
    assert len(answer.content) < MAX_ANSWER
    return answer


async def test_a_long_list_of_errors_is_cut(client: httpx.AsyncClient) -> None:
    problem = (await post(client, "/v1/jobs", {"prompt": "1", **members(500)})).json()
    assert len(problem["errors"]) == MAX_ERRORS + 1
    assert problem["errors"][0] == {"detail": "There is no such field.", "type": "extra_forbidden", "pointer": "#/x0"}
    assert problem["errors"][-1]["detail"] == "480 more errors are not shown."
    assert problem["detail"].endswith("480 more errors are not shown.")


async def test_a_list_that_is_just_short_enough_is_whole(client: httpx.AsyncClient) -> None:
    problem = (await post(client, "/v1/jobs", {"prompt": "1", **members(MAX_ERRORS)})).json()
    assert [error["type"] for error in problem["errors"]] == ["extra_forbidden"] * MAX_ERRORS


async def test_a_long_list_of_errors_is_cut_in_the_guides_format(client: httpx.AsyncClient) -> None:
    wrong = {"prompt": "1", "stop": [1, 2, 3, 4], "max_tokens": {}, "seed": "x", "model": "", "top_k": 0, "top_p": 9}
    detail = (await post(client, "/generate", wrong)).json()["detail"]
    assert all(error["loc"] and error["msg"] and error["type"] for error in detail)


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("where", ["top", "metadata", "ignored"])
async def test_an_object_with_too_many_members_is_refused_before_they_are_checked(
    client: httpx.AsyncClient, route: str, where: str
) -> None:
    """100,000 unknown fields would be 100,000 errors."""
    many = members(70_000)
    body = {"prompt": "1", **many} if where == "top" else {"prompt": "1", where: many}
    answer = await post(client, route, body)
    count = len(body) if where == "top" else len(many)
    assert f"{count} members, and may have {MAX_MEMBERS}" in answer.text
    errors = answer.json()["errors" if route == "/v1/jobs" else "detail"]
    assert len(errors) == 1


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize(
    "body",
    [
        {"prompt": [LONG]},
        {"prompt": {LONG: LONG[:10]}},
        {"prompt": [["y" * 100 for _ in range(500)] for _ in range(18)]},
        {"prompt": [[[["y" * 30] * 20] * 20] * 20]},
        {"prompt": [1] * 300_000},
        {"prompt": 1, "stop": [LONG]},
        {"prompt": 1, "max_tokens": "9" * 900_000},
        {"prompt": 1, "temperature": LONG},
        {"prompt": 1, "model": LONG},
        {"prompt": 1, "metadata": {LONG[:500_000]: LONG[:400_000]}},
        [LONG],
        LONG,
    ],
    ids=["list", "name", "nested", "deeper", "numbers", "stop", "int", "float", "model", "metadata", "array", "string"],
)
async def test_a_large_input_is_not_repeated(client: httpx.AsyncClient, route: str, body: Any) -> None:
    answer = await post(client, route, body)
    assert "y" * 3000 not in answer.text.replace('", "', "").replace('","', "")


@pytest.mark.parametrize(
    "headers",
    [
        {"Cancel-After": "x" * 15_000},
        {"Idempotency-Key": '"' + "x" * 15_000 + '"'},
        {"Idempotency-Key": "x y" * 5_000},
    ],
)
@pytest.mark.parametrize("route", ROUTES)
async def test_a_long_header_is_not_repeated(client: httpx.AsyncClient, route: str, headers: dict[str, str]) -> None:
    answer = await client.post(route, json={"prompt": "1"}, headers=headers)
    assert answer.status_code == 422
    assert len(answer.content) < 2000


@pytest.mark.parametrize(
    "path",
    [
        "/v1/jobs?" + "&".join(f"a{index}=1" for index in range(1_000)),
        "/v1/jobs?" + "a" * 7_000,
        "/v1/jobs?" + "limit=1&" * 800,
        "/v1/jobs?limit=" + "9" * 7_000,
        "/v1/jobs?status=" + "a" * 7_000,
        "/v1/jobs?cursor=" + "a" * 7_000,
        "/v1/jobs/job_01JZ8K6T4V9QABCDEFGHJKMNPQ?wait=" + "1" * 7_000,
        "/v1/jobs/job_01JZ8K6T4V9QABCDEFGHJKMNPQ/stream?starting_after=" + "1" * 7_000,
    ],
    ids=["many", "long name", "repeated", "int", "enum", "cursor", "float", "position"],
)
async def test_a_long_query_is_not_repeated(client: httpx.AsyncClient, path: str) -> None:
    answer = await client.get(path)
    assert answer.status_code == 422
    assert len(answer.content) < MAX_ANSWER
    assert len(answer.json()["errors"]) <= MAX_ERRORS + 1


async def test_a_long_path_is_not_repeated(client: httpx.AsyncClient) -> None:
    for path in ("/v1/jobs/", "/v1/", "/", "/generate/"):
        answer = await client.get(path + "x" * 7_000)
        assert answer.status_code == 404
        assert len(answer.content) < 2000
