"""Errors in OpenAI's format, with the status and the headers on which its client libraries decide about a retry."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from api.http.problems import ApiError, Code, presentable

#: Names of errors in OpenAI's format, where its clients know another one.
_CODES = {Code.PROMPT_TOO_LONG: "context_length_exceeded"}
#: The type of all errors with a status from 400 to 499 that are not in the next table.
_INVALID = "invalid_request_error"
#: OpenAI's types of errors by status, for those that are not `invalid_request_error` or `server_error`.
_TYPES: dict[int, str] = {
    HTTPStatus.UNAUTHORIZED: "authentication_error",
    HTTPStatus.FORBIDDEN: "permission_error",
    HTTPStatus.TOO_MANY_REQUESTS: "rate_limit_error",
}


def openai_body(error: ApiError) -> dict[str, Any]:
    """The body of the response. `celeriac` names the job that the error is about, if there is one."""
    status = openai_status(error)
    detail = {
        "message": error.detail,
        "type": _TYPES.get(status, "server_error" if status >= HTTPStatus.INTERNAL_SERVER_ERROR else _INVALID),
        "param": _param(error),
        "code": _code(error),
    }
    job = {name: error.extra[name] for name in ("job_id", "job_url") if name in error.extra}
    return {"error": detail, "celeriac": job} if job else {"error": detail}


def openai_status(error: ApiError) -> int:
    """The status: a request that is not valid gets 400, where the other routes have 422."""
    status = error.http_status
    # An HTTPStatus would appear in the log by its name.
    return int(HTTPStatus.BAD_REQUEST) if status == HTTPStatus.UNPROCESSABLE_ENTITY else status


def openai_headers(error: ApiError) -> dict[str, str]:
    """The headers, always with `X-Should-Retry`, which OpenAI's libraries obey.

    It is true only if the call was not accepted and may be later. A repeated call would otherwise become a second job.
    """
    headers = error.all_headers()
    if not any(name.lower() == "x-should-retry" for name in headers):
        headers["X-Should-Retry"] = "true" if error.kind.retryable else "false"
    return headers


def _param(error: ApiError) -> str | None:
    """The first wrong field, with dots: `stop`, `messages.0.role`."""
    path = error.errors[0].path if error.errors else ()
    if error.code is Code.MODEL_NOT_FOUND and not path:
        path = ("model",)
    # On these routes, token ids are given as the prompt.
    path = ("prompt", *path[1:]) if path[:1] == ("prompt_token_ids",) else path
    return ".".join(str(presentable(part)) for part in path) or None


def _code(error: ApiError) -> str:
    if error.code is Code.INVALID_REQUEST and error.errors:
        return error.errors[0].type
    return _CODES.get(error.code, error.code.value)
