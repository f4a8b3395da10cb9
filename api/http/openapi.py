"""The OpenAPI document: errors and response headers of the routes, and the document itself."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from starlette.routing import compile_path

from api.http.problems import KINDS, Code
from api.schemas.errors import LegacyError, Problem

Responses = dict[int | str, dict[str, Any]]

#: Error codes of every route that needs Redis.
QUEUE_CODES = (Code.REDIS_UNAVAILABLE, Code.SCHEMA_MISMATCH, Code.INTERNAL)
#: Error codes of every route that submits a job.
SUBMIT_CODES = (
    *QUEUE_CODES,
    Code.INVALID_REQUEST,
    Code.PROMPT_TOO_LONG,
    Code.BODY_TOO_LARGE,
    Code.MODEL_NOT_FOUND,
    Code.MODEL_REQUIRED,
    Code.IDEMPOTENCY_MISMATCH,
    Code.GONE,
    Code.QUEUE_FULL,
    Code.MODEL_NOT_LOADED,
    Code.NO_WORKERS,
)

#: The content of a stream. The same status may also have JSON content.
STREAM_CONTENT = {"text/event-stream": {"schema": {"type": "string"}}}

_PROBLEM_REF = "#/components/schemas/Problem"


def legacy_errors(codes: Iterable[Code]) -> Responses:
    """`responses` of a route of the guide: one entry for each status, with FastAPI's error body."""
    return _responses(codes, LegacyError)


def problems(codes: Iterable[Code]) -> Responses:
    """`responses` of any other route: one entry for each status, with problem details."""
    return _responses(codes, Problem)


def headers(**described: str) -> dict[str, Any]:
    """`headers` of a response: descriptions by name, with `_` for `-`."""
    return {
        name.replace("_", "-"): {"description": description, "schema": {"type": "string"}}
        for name, description in described.items()
    }


def openapi(app: FastAPI) -> dict[str, Any]:
    """The application's OpenAPI document. Problem details get their own media type."""
    document = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
    for path in document["paths"].values():
        for operation in path.values():
            for response in operation["responses"].values():
                content = response.get("content", {})
                if content.get("application/json", {}).get("schema", {}).get("$ref") == _PROBLEM_REF:
                    content["application/problem+json"] = content.pop("application/json")
    return document


def allowed_methods(app: FastAPI, path: str) -> list[str]:
    """The methods of a path in the document, sorted; empty for a path that is not in it.

    HEAD is among them if GET is, although the document does not list it.
    """
    found: set[str] = set()
    for template, operations in app.openapi()["paths"].items():
        pattern, _, _ = compile_path(template)
        if pattern.match(path):
            found.update(method.upper() for method in operations)
    return sorted(found | {"HEAD"} if "GET" in found else found)


def _responses(codes: Iterable[Code], model: type[LegacyError | Problem]) -> Responses:
    by_status: dict[int, list[Code]] = defaultdict(list)
    for code in codes:
        by_status[KINDS[code].status].append(code)
    return {
        status: {
            "model": model,
            "description": "; ".join(f"`{code}`: {KINDS[code].title}" for code in those),
            **(
                {"headers": headers(Retry_After="Seconds to wait before a new attempt.")}
                if status in (429, 503)
                else {}
            ),
        }
        for status, those in sorted(by_status.items())
    }
