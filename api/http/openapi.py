"""The OpenAPI document: errors and response headers of the routes, and the document itself."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.routing import compile_path

from api.http.problems import KINDS, Code
from api.schemas.errors import LegacyError, Problem
from api.schemas.openai.errors import OpenAiError

Responses = dict[int | str, dict[str, Any]]

#: Error codes of every route.
_COMMON_CODES = (
    Code.BODY_TOO_LARGE,
    Code.URI_TOO_LONG,
    Code.HEADERS_TOO_LARGE,
    Code.MALFORMED_REQUEST,
    Code.REQUEST_TIMEOUT,
    Code.TOO_MANY_CONNECTIONS,
    Code.UNKNOWN_HOST,
    Code.INTERNAL,
)
#: Error codes of every route that changes something.
CHANGE_CODES = (Code.ORIGIN_NOT_ALLOWED,)
#: Error codes of every route that needs Redis.
QUEUE_CODES = (Code.REDIS_UNAVAILABLE, Code.SCHEMA_MISMATCH)
#: Error codes of every route that submits a job.
SUBMIT_CODES = (
    *QUEUE_CODES,
    *CHANGE_CODES,
    Code.INVALID_REQUEST,
    Code.PROMPT_TOO_LONG,
    Code.CHAT_UNSUPPORTED,
    Code.MODEL_NOT_FOUND,
    Code.MODEL_REQUIRED,
    Code.IDEMPOTENCY_MISMATCH,
    Code.QUEUE_FULL,
    Code.MODEL_NOT_LOADED,
    Code.NO_WORKERS,
    # The job was accepted, or found by its key, and then deleted or lost.
    Code.GONE,
    Code.JOB_LOST,
)

#: Error codes of a call that answers with the text of its jobs, beside those of `SUBMIT_CODES`.
CALL_CODES = (
    Code.WAIT_TIMEOUT,
    Code.START_TIMEOUT,
    Code.DEADLINE_EXCEEDED,
    Code.CANCELLED,
    Code.CHECKPOINT_CHANGED,
    Code.CHECKPOINT_REMOVED,
    Code.CHECKPOINT_UNLOADABLE,
    Code.WORKER_LOST,
    Code.OUT_OF_MEMORY,
    Code.RECORD_DAMAGED,
    Code.UNSUPPORTED,
)

_REF = "#/components/schemas/{model}"
_PROBLEM_REF = _REF.format(model="Problem")


def legacy_errors(codes: Iterable[Code] = ()) -> Responses:
    """`responses` of a route of the guide: one entry for each status, with FastAPI's error body.

    The codes that every route has are added.
    """
    return _responses(codes, LegacyError, {})


def problems(codes: Iterable[Code] = (), *, with_status: Mapping[int, Iterable[Code]] | None = None) -> Responses:
    """`responses` of any other route: one entry for each status, with problem details.

    The codes that every route has are added. `with_status` has codes by a status that is not the one of the table.
    """
    return _responses(codes, Problem, with_status or {})


def openai_errors(codes: Iterable[Code] = (), *, with_status: Mapping[int, Iterable[Code]] | None = None) -> Responses:
    """As `problems`, of a route of OpenAI's API: its error bodies, and 400 where the table has 422."""
    responses = _responses(codes, OpenAiError, with_status or {})
    refused = responses.pop(HTTPStatus.UNPROCESSABLE_ENTITY, None)
    if refused is not None:
        known = responses[HTTPStatus.BAD_REQUEST]
        known["description"] = f"{refused['description']}; {known['description']}"
    return responses


def stream_content(events: Mapping[str, type[BaseModel]]) -> dict[str, Any]:
    """`content` of a response that is a stream of events, with the data of each event.

    The same status may also have JSON content. OpenAPI 3.1 has no field for the data of events, so it is in `x-events`.
    """
    return {
        "text/event-stream": {
            "schema": {"type": "string", "description": "Server-Sent Events."},
            "x-events": {name: {"$ref": _REF.format(model=data.__name__)} for name, data in events.items()},
        }
    }


def chunk_content(chunk: type[BaseModel]) -> dict[str, Any]:
    """`content` of a response that is a stream of chunks, each the data of an event.

    The schema has no type: some programs compare it with the whole body, and others with each event.
    """
    return {
        "text/event-stream": {
            "schema": {"description": "Server-Sent Events."},
            "x-data": {"$ref": _REF.format(model=chunk.__name__)},
        }
    }


def headers(**described: str) -> dict[str, Any]:
    """`headers` of a response: descriptions by name, with `_` for `-`."""
    return {
        name.replace("_", "-"): {"description": description, "schema": {"type": "string"}}
        for name, description in described.items()
    }


def openapi(app: FastAPI, models: Iterable[type[BaseModel]]) -> dict[str, Any]:
    """The application's OpenAPI document. Problem details get their own media type.

    `models` are those that only `stream_content` names.
    """
    document = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
    for path in document["paths"].values():
        for operation in path.values():
            for response in operation["responses"].values():
                content = response.get("content", {})
                if content.get("application/json", {}).get("schema", {}).get("$ref") == _PROBLEM_REF:
                    content["application/problem+json"] = content.pop("application/json")
    _, more = models_json_schema([(model, "serialization") for model in models], ref_template=_REF)
    for name, schema in more["$defs"].items():
        document["components"]["schemas"].setdefault(name, schema)
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
    return with_head(found)


def with_head(methods: Iterable[str]) -> list[str]:
    """The methods, sorted. HEAD is among them if GET is, because every route that answers GET answers HEAD."""
    found = {*methods}
    return sorted(found | {"HEAD"} if "GET" in found else found)


def _responses(
    codes: Iterable[Code], model: type[LegacyError | Problem | OpenAiError], with_status: Mapping[int, Iterable[Code]]
) -> Responses:
    by_status: dict[int, list[Code]] = defaultdict(list)
    for status, those in with_status.items():
        by_status[status].extend(those)
    for code in dict.fromkeys((*codes, *_COMMON_CODES)):
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
