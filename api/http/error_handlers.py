"""How each exception becomes an answer, in the way of the route that it was raised on."""

from __future__ import annotations

import re
import traceback
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any

import structlog
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from redis.exceptions import OutOfMemoryError, ReadOnlyError, RedisError, ResponseError
from starlette.exceptions import HTTPException
from starlette.types import Scope

from api.http.openapi import allowed_methods
from api.http.problems import RETRY_SOON_S, ApiError, Code, FieldError, presentable
from api.jobs.waiter import ClientGoneError
from tasks.errors import SchemaError

log = structlog.get_logger(__name__)

#: What nginx logs for a client that went away; nobody sees the answer.
CLIENT_CLOSED_REQUEST = 499
#: Refusals of Redis that pass: memory full, disk full or failing, a replica, too few replicas. Scripts quote them.
_PASSING_REFUSAL = re.compile(r"\b(OOM|MISCONF|READONLY|NOREPLICAS|MASTERDOWN)\b")


def install(app: FastAPI) -> None:
    """Register the handlers."""
    app.add_exception_handler(ApiError, _api_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(HTTPException, _http_exception)
    app.add_exception_handler(SchemaError, _schema_error)
    app.add_exception_handler(RedisError, _redis_error)
    app.add_exception_handler(ClientGoneError, _client_gone)


def error_response(scope: Scope, error: ApiError) -> Response:
    """The answer to a request on `scope` that failed with `error`."""
    if _speaks_problems(scope):
        return JSONResponse(
            error.to_problem(scope["path"]),
            error.http_status,
            error.all_headers(),
            media_type="application/problem+json",
        )
    return JSONResponse(error.to_legacy(), error.http_status, error.all_headers())


def unexpected_error(scope: Scope, error: Exception) -> Response:
    """The answer where our own code failed. The log gets type and place, not the message: it may quote a prompt."""
    log.error(
        "unexpected_error",
        error=type(error).__name__,
        path=scope["path"],
        stack="".join(traceback.format_tb(error.__traceback__)),
    )
    return error_response(scope, ApiError(Code.INTERNAL, "Internal error. The server's log tells more."))


def _speaks_problems(scope: Scope) -> bool:
    """Whether errors on this path are problem details; the guide's own routes keep FastAPI's form."""
    return _route_path(scope).startswith(("/v1/", "/health/"))


def _route_path(scope: Scope) -> str:
    """The path without the prefix that a proxy put in front."""
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", ""))


async def _api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return error_response(request.scope, error)


async def _validation_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    errors = [_field_error(raw) for raw in error.errors()]
    return error_response(request.scope, ApiError(Code.INVALID_REQUEST, _summary(errors), errors=errors))


async def _http_exception(request: Request, error: Exception) -> Response:
    """What the router raises: no such path, no such method."""
    assert isinstance(error, HTTPException)
    headers = dict(error.headers or {})
    code = Code.NOT_FOUND
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        code = Code.METHOD_NOT_ALLOWED
        # The router names the methods of one route; another one may share its path.
        headers["Allow"] = ", ".join(allowed_methods(request.app, _route_path(request.scope))) or headers["Allow"]
    if not _speaks_problems(request.scope):
        return JSONResponse({"detail": error.detail}, error.status_code, headers)
    return error_response(request.scope, ApiError(code, f"{error.detail}.", headers=headers))


async def _schema_error(request: Request, error: Exception) -> Response:
    return error_response(request.scope, ApiError(Code.SCHEMA_MISMATCH, str(error)))


async def _redis_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RedisError)
    refusal = _refusal(error) if isinstance(error, ResponseError) else None
    if isinstance(error, ResponseError) and refusal is None:
        return unexpected_error(request.scope, error)
    log.warning("redis_unavailable", error=type(error).__name__, reason=str(error))
    if refusal is None:
        request.app.state.services.redis_went_away()
    detail = (
        "Redis cannot be reached. It is tried again at every request."
        if refusal is None
        else f"Redis refuses to write ({refusal}). Its log tells more."
    )
    return error_response(request.scope, ApiError(Code.REDIS_UNAVAILABLE, detail, retry_after_s=RETRY_SOON_S))


def _refusal(error: ResponseError) -> str | None:
    """Redis's word for a refusal that passes; None for an error that is ours."""
    # redis-py has classes for some of them, and cuts the word off their messages.
    if isinstance(error, OutOfMemoryError):
        return "OOM"
    if isinstance(error, ReadOnlyError):
        return "READONLY"
    match = _PASSING_REFUSAL.search(str(error))
    return None if match is None else match[1]


async def _client_gone(request: Request, error: Exception) -> Response:
    return Response(status_code=CLIENT_CLOSED_REQUEST)


def _field_error(raw: dict[str, Any]) -> FieldError:
    loc = tuple(presentable(part) for part in raw["loc"])
    return FieldError(loc, raw["msg"], raw["type"], raw.get("input"), raw.get("ctx"))


def _summary(errors: Sequence[FieldError]) -> str:
    """All messages in one line, each with its field."""
    return "; ".join(
        f"{'.'.join(str(part) for part in error.loc[1:]) or error.loc[0]}: {error.msg}" for error in errors
    )
