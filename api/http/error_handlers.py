"""Turns exceptions into responses, in the error format of the route that raised them."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping
from enum import Enum, auto
from http import HTTPStatus
from typing import Any

import structlog
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from redis.exceptions import RedisError, ResponseError
from starlette.exceptions import HTTPException
from starlette.types import Scope

from api.http.disconnect import ClientGoneError
from api.http.openai_errors import openai_body, openai_headers, openai_status
from api.http.openapi import allowed_methods, with_head
from api.http.problems import RETRY_SOON_S, ApiError, Code, FieldError, presentable, shown, summary
from tasks.errors import RedisUnusableError, SchemaError
from tasks.redis_client.errors import refusal, why_unusable

log = structlog.get_logger(__name__)

#: The status that nginx logs for a client that disconnected. No client receives it.
CLIENT_CLOSED_REQUEST = 499

#: The paths of OpenAI's API, and of vLLM's additions to it. The paths below them belong to it too.
_OPENAI_PATHS = (
    "/v1/models",
    "/v1/completions",
    "/v1/chat",
    "/v1/responses",
    "/tokenize",
    "/detokenize",
    "/tokenizer_info",
)

#: What to do instead, for fields that other APIs have.
_HINTS: Mapping[tuple[str | int, ...], str] = {
    ("body", "stream"): " To get the text as a stream, read GET /v1/jobs/{id}/stream after you have submitted the job, "
    "or send POST /generate with Accept: text/event-stream."
}


def install(app: FastAPI, *, redis_address: str, on_redis_away: Callable[[], None]) -> None:
    """Register the handlers. `redis_address`: the URL of Redis without the password, for messages.

    `on_redis_away` is called for each request that failed because Redis is unreachable or unusable.
    """

    async def redis_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, RedisError)
        return _redis_error(request, error, redis_address, on_redis_away)

    app.add_exception_handler(ApiError, _api_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(HTTPException, _http_exception)
    app.add_exception_handler(SchemaError, _schema_error)
    app.add_exception_handler(RedisUnusableError, _redis_unusable)
    app.add_exception_handler(RedisError, redis_error)
    app.add_exception_handler(ClientGoneError, _client_gone)


def error_response(scope: Scope, error: ApiError) -> Response:
    """The response to a request on `scope` that failed with `error`."""
    match _format_of(scope):
        case _Format.OPENAI:
            return JSONResponse(openai_body(error), openai_status(error), openai_headers(error))
        case _Format.PROBLEM_DETAILS:
            return JSONResponse(
                error.to_problem(scope.get("root_path", "") + route_path(scope)),
                error.http_status,
                error.all_headers(),
                media_type="application/problem+json",
            )
        case _Format.LEGACY:
            return JSONResponse(error.to_legacy(), error.http_status, error.all_headers())


def unexpected_error(scope: Scope, error: Exception) -> Response:
    """The response to a bug in our code.

    The log gets the error's type and place, but not its message, which may quote a prompt.
    """
    log.error(
        "unexpected_error",
        error=type(error).__name__,
        path=scope["path"],
        stack="".join(traceback.format_tb(error.__traceback__)),
    )
    return error_response(scope, ApiError(Code.INTERNAL, "Internal error. See the server's log."))


class _Format(Enum):
    """The formats of errors."""

    #: FastAPI's, on the guide's routes.
    LEGACY = auto()
    PROBLEM_DETAILS = auto()
    OPENAI = auto()


def _format_of(scope: Scope) -> _Format:
    """The format of errors on this path."""
    # `/health/` is a misspelled `/health`, which is a route of the guide.
    path = route_path(scope).rstrip("/")
    if any(path == root or path.startswith(f"{root}/") for root in _OPENAI_PATHS):
        return _Format.OPENAI
    return _Format.PROBLEM_DETAILS if path.startswith(("/v1/", "/health/")) else _Format.LEGACY


def route_path(scope: Scope) -> str:
    """The path without the prefix under which a proxy serves the API, which the proxy may have removed already."""
    path: str = scope["path"]
    prefix: str = scope.get("root_path", "")
    return path.removeprefix(prefix) if path.startswith(f"{prefix}/") else path


async def _api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return error_response(request.scope, error)


async def _validation_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    raw = error.errors()
    errors = shown(map(_field_error, raw), len(raw))
    return error_response(request.scope, ApiError(Code.INVALID_REQUEST, summary(errors), errors=errors))


async def _http_exception(request: Request, error: Exception) -> Response:
    """Handle what the router raises: no such path, or no such method."""
    assert isinstance(error, HTTPException)
    headers = dict(error.headers or {})
    code, detail = Code.NOT_FOUND, str(error.detail)
    path = route_path(request.scope)
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        code = Code.METHOD_NOT_ALLOWED
        # The router names only the methods of the first route on this path.
        headers["Allow"] = ", ".join(allowed_methods(request.app, path) or with_head(headers["Allow"].split(", ")))
    elif path.endswith("/") and allowed_methods(request.app, path.rstrip("/")):
        detail += ": send the request without the slash at the end of the path"
    if _format_of(request.scope) is _Format.LEGACY:
        return JSONResponse({"detail": detail}, error.status_code, headers)
    return error_response(request.scope, ApiError(code, f"{detail}.", headers=headers))


async def _schema_error(request: Request, error: Exception) -> Response:
    return error_response(request.scope, ApiError(Code.SCHEMA_MISMATCH, str(error)))


def _redis_error(request: Request, error: RedisError, address: str, on_redis_away: Callable[[], None]) -> Response:
    refused, problem = refusal(error), why_unusable(error, address)
    if isinstance(error, ResponseError) and refused is None and problem is None:
        return unexpected_error(request.scope, error)
    log.warning("redis_unavailable", error=type(error).__name__, reason=str(error))
    if refused is None:
        on_redis_away()
        detail = problem or "Redis cannot be reached. Each request tries again."
    else:
        detail = f"Redis refuses writes ({refused}). See the log of Redis."
    return error_response(request.scope, ApiError(Code.REDIS_UNAVAILABLE, detail, retry_after_s=RETRY_SOON_S))


async def _redis_unusable(request: Request, error: Exception) -> Response:
    log.warning("redis_unusable", reason=str(error))
    return error_response(request.scope, ApiError(Code.REDIS_UNAVAILABLE, str(error), retry_after_s=RETRY_SOON_S))


async def _client_gone(request: Request, error: Exception) -> Response:
    return Response(status_code=CLIENT_CLOSED_REQUEST)


def _field_error(raw: dict[str, Any]) -> FieldError:
    loc = tuple(presentable(part) for part in raw["loc"])
    message = presentable(raw["msg"])
    if raw["type"] == "extra_forbidden":
        message = f"There is no such field.{_HINTS.get(loc, '')}"
    if raw["type"] == "json_invalid":
        message = f"JSON decode error at character {loc[1]}: {presentable(raw['ctx']['error'])}"
    return FieldError(loc, message, raw["type"], raw.get("input"), raw.get("ctx"))
