"""Turns exceptions into responses, in the error format of the route that raised them."""

from __future__ import annotations

import re
import traceback
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Any

import structlog
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from redis.exceptions import OutOfMemoryError, ReadOnlyError, RedisError, ResponseError
from starlette.exceptions import HTTPException
from starlette.types import Scope

from api.http.disconnect import ClientGoneError
from api.http.openapi import allowed_methods, with_head
from api.http.problems import RETRY_SOON_S, ApiError, Code, FieldError, presentable, shown, summary
from tasks.errors import SchemaError

log = structlog.get_logger(__name__)

#: The status that nginx logs for a client that disconnected. No client receives it.
CLIENT_CLOSED_REQUEST = 499
#: Codes of errors with which Redis refuses writes for a while: out of memory, disk full or failing, a replica, too few
#: replicas. In an error of a script the code is inside the message.
_TEMPORARY_REFUSAL = re.compile(r"\b(OOM|MISCONF|READONLY|NOREPLICAS|MASTERDOWN)\b")

#: What to do instead, for fields that other APIs have.
_HINTS: Mapping[tuple[str | int, ...], str] = {
    ("body", "stream"): " To get the text as a stream, read GET /v1/jobs/{id}/stream after you have submitted the job, "
    "or send POST /generate with Accept: text/event-stream."
}


def install(app: FastAPI, *, on_redis_away: Callable[[], None]) -> None:
    """Register the handlers. `on_redis_away` is called for each request that failed because Redis is unreachable."""

    async def redis_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, RedisError)
        return _redis_error(request, error, on_redis_away)

    app.add_exception_handler(ApiError, _api_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(HTTPException, _http_exception)
    app.add_exception_handler(SchemaError, _schema_error)
    app.add_exception_handler(RedisError, redis_error)
    app.add_exception_handler(ClientGoneError, _client_gone)


def error_response(scope: Scope, error: ApiError) -> Response:
    """The response to a request on `scope` that failed with `error`."""
    if _uses_problem_details(scope):
        return JSONResponse(
            error.to_problem(scope.get("root_path", "") + route_path(scope)),
            error.http_status,
            error.all_headers(),
            media_type="application/problem+json",
        )
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


def _uses_problem_details(scope: Scope) -> bool:
    """Whether errors on this path are problem details. The guide's routes keep FastAPI's format."""
    # `/health/` is a misspelled `/health`, which is a route of the guide.
    return route_path(scope).rstrip("/").startswith(("/v1/", "/health/"))


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
    if not _uses_problem_details(request.scope):
        return JSONResponse({"detail": detail}, error.status_code, headers)
    return error_response(request.scope, ApiError(code, f"{detail}.", headers=headers))


async def _schema_error(request: Request, error: Exception) -> Response:
    return error_response(request.scope, ApiError(Code.SCHEMA_MISMATCH, str(error)))


def _redis_error(request: Request, error: RedisError, on_redis_away: Callable[[], None]) -> Response:
    refusal = _refusal(error) if isinstance(error, ResponseError) else None
    if isinstance(error, ResponseError) and refusal is None:
        return unexpected_error(request.scope, error)
    log.warning("redis_unavailable", error=type(error).__name__, reason=str(error))
    if refusal is None:
        on_redis_away()
    detail = (
        "Redis cannot be reached. Each request tries again."
        if refusal is None
        else f"Redis refuses writes ({refusal}). See the log of Redis."
    )
    return error_response(request.scope, ApiError(Code.REDIS_UNAVAILABLE, detail, retry_after_s=RETRY_SOON_S))


def _refusal(error: ResponseError) -> str | None:
    """The code of a temporary refusal, such as `OOM`; None for an error that our code caused."""
    # redis-py has classes for some of them, and removes the code from their messages.
    if isinstance(error, OutOfMemoryError):
        return "OOM"
    if isinstance(error, ReadOnlyError):
        return "READONLY"
    match = _TEMPORARY_REFUSAL.search(str(error))
    return None if match is None else match[1]


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
