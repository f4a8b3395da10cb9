"""What the OpenAPI document says of errors and headers."""

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

#: Codes with which every route that needs Redis may answer.
QUEUE_CODES = (Code.REDIS_UNAVAILABLE, Code.SCHEMA_MISMATCH, Code.INTERNAL)
#: Codes of every route that takes a body and puts it in the queue.
SUBMIT_CODES = (
    *QUEUE_CODES,
    Code.INVALID_REQUEST,
    Code.PROMPT_TOO_LONG,
    Code.BODY_TOO_LARGE,
    Code.MODEL_NOT_FOUND,
    Code.MODEL_REQUIRED,
    Code.IDEMPOTENCY_MISMATCH,
    Code.QUEUE_FULL,
    Code.MODEL_NOT_LOADED,
    Code.NO_WORKERS,
)

#: A stream, beside which the same status may have an answer in JSON.
STREAM_CONTENT = {"text/event-stream": {"schema": {"type": "string"}}}

_PROBLEM_REF = "#/components/schemas/Problem"


def legacy_errors(codes: Iterable[Code]) -> Responses:
    """The `responses` of a route of the guide."""
    return _responses(codes, LegacyError)


def problems(codes: Iterable[Code]) -> Responses:
    """The `responses` of a new route."""
    return _responses(codes, Problem)


def headers(**described: str) -> dict[str, Any]:
    """The `headers` of a response; `_` in a name stands for `-`."""
    return {
        name.replace("_", "-"): {"description": description, "schema": {"type": "string"}}
        for name, description in described.items()
    }


def openapi(app: FastAPI) -> dict[str, Any]:
    """The application's OpenAPI document, with problem details under their own media type."""
    document = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
    for path in document["paths"].values():
        for operation in path.values():
            for response in operation["responses"].values():
                content = response.get("content", {})
                if content.get("application/json", {}).get("schema", {}).get("$ref") == _PROBLEM_REF:
                    content["application/problem+json"] = content.pop("application/json")
    return document


def allowed_methods(app: FastAPI, path: str) -> list[str]:
    """Methods that the document has for a path, sorted; none for a path that is not in it."""
    found: set[str] = set()
    for template, operations in app.openapi()["paths"].items():
        pattern, _, _ = compile_path(template)
        if pattern.match(path):
            found.update(method.upper() for method in operations)
    return sorted(found)


def _responses(codes: Iterable[Code], model: type[LegacyError | Problem]) -> Responses:
    by_status: dict[int, list[Code]] = defaultdict(list)
    for code in codes:
        by_status[KINDS[code].status].append(code)
    return {
        status: {
            "model": model,
            "description": "; ".join(f"`{code}`: {KINDS[code].title}" for code in those),
            **(
                {"headers": headers(Retry_After="Seconds until a new try makes sense.")} if status in (429, 503) else {}
            ),
        }
        for status, those in sorted(by_status.items())
    }
