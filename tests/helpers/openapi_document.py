"""Compares what the API answers with its OpenAPI document."""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any

import httpx
from jsonschema import Draft202012Validator, FormatChecker
from starlette.routing import compile_path

from api.app import create_app
from tasks.settings import Settings

STREAM_PATH = "/v1/jobs/{job_id}/stream"


@lru_cache
def document() -> dict[str, Any]:
    """The OpenAPI document."""
    return create_app(Settings()).openapi()


def check_event(name: str, data: Any) -> None:
    """Fails unless the event and its data are as the document says, without a member that it does not name."""
    content = document()["paths"][STREAM_PATH]["get"]["responses"]["200"]["content"]["text/event-stream"]
    assert name in content["x-events"], f"{name} is not documented"
    schema = {**content["x-events"][name], "components": document()["components"]}
    errors = [error.message for error in _validator(schema).iter_errors(data)]
    assert not errors, f"{name} {data}: {errors}"
    named = document()["components"]["schemas"][schema["$ref"].rpartition("/")[2]]["properties"]
    assert data.keys() <= named.keys(), f"{name}: {data.keys() - named.keys()} is not documented"


async def check_answer(answer: httpx.Response) -> None:
    """Fails unless the document has the status, the media type and the error code of this answer for its route.

    A hook for clients. It knows only paths without a root path.
    """
    request = answer.request
    operation = _operation("GET" if request.method == "HEAD" else request.method, request.url.path)
    if operation is None:
        return
    what = f"{request.method} {request.url.path}: {answer.status_code}"
    documented = operation["responses"].get(str(answer.status_code))
    assert documented is not None, f"{what} is not documented"
    media_type = answer.headers.get("content-type", "").partition(";")[0]
    assert media_type in documented.get("content", {"": None}), f"{what} with {media_type!r} is not documented"
    if media_type == "application/problem+json" and request.method != "HEAD":
        code = json.loads(await answer.aread())["code"]
        assert f"`{code}`" in documented["description"], f"{what} with the code {code} is not documented"


def _operation(method: str, path: str) -> Any:
    for template, operations in document()["paths"].items():
        if compile_path(template)[0].match(path):
            return operations.get(method.lower())
    return None


def _validator(schema: dict[str, Any]) -> Draft202012Validator:
    return Draft202012Validator(schema, format_checker=FormatChecker())
