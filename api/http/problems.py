"""The API's errors: one table of codes, and three formats for the response.

The routes under `/v1` and `/health/` answer with problem details (RFC 9457, `application/problem+json`). The guide's
routes keep FastAPI's `{"detail": ...}`: a list if a field is wrong, a string otherwise. The routes of OpenAI's API have
its format: see `api.http.openai_errors`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import islice
from typing import Any

#: Retry-After for causes that usually end soon, in seconds.
RETRY_SOON_S = 1
#: Retry-After for errors that last until a worker has started, in seconds.
RETRY_WORKER_S = 5

#: Limits on how much of the caller's input an error repeats.
MAX_ECHO_CHARACTERS = 200
MAX_ECHO_ITEMS = 20
MAX_ECHO_DEPTH = 4
#: Roughly the characters and values of one copy, after which it leaves out the rest.
MAX_ECHO_IN_ALL = 1000
#: Most wrong parts of a request that one error names.
MAX_ERRORS = 20


class Code(StrEnum):
    """Codes of the API's errors, including those of failed jobs."""

    INVALID_REQUEST = "invalid_request"
    PROMPT_TOO_LONG = "prompt_too_long"
    BODY_TOO_LARGE = "body_too_large"
    URI_TOO_LONG = "uri_too_long"
    HEADERS_TOO_LARGE = "headers_too_large"
    MALFORMED_REQUEST = "malformed_request"
    REQUEST_TIMEOUT = "request_timeout"
    TOO_MANY_CONNECTIONS = "too_many_connections"
    NOT_FOUND = "not_found"
    #: The job was deleted, or the job of an idempotency key has expired.
    GONE = "gone"
    NOT_RETRYABLE = "not_retryable"
    METHOD_NOT_ALLOWED = "method_not_allowed"
    MODEL_NOT_FOUND = "model_not_found"
    MODEL_REQUIRED = "model_required"
    IDEMPOTENCY_MISMATCH = "idempotency_mismatch"
    QUEUE_FULL = "queue_full"
    MAX_QUEUE_POSITION = "max_queue_position"
    MODEL_NOT_LOADED = "model_not_loaded"
    NO_WORKERS = "no_workers"
    REDIS_UNAVAILABLE = "redis_unavailable"
    SCHEMA_MISMATCH = "schema_mismatch"
    #: The job was accepted, and Redis has lost it since.
    JOB_LOST = "job_lost"
    WAIT_TIMEOUT = "wait_timeout"
    START_TIMEOUT = "start_timeout"
    CHECKPOINT_CHANGED = "checkpoint_changed"
    CHECKPOINT_REMOVED = "checkpoint_removed"
    CHECKPOINT_UNLOADABLE = "checkpoint_unloadable"
    WORKER_LOST = "worker_lost"
    OUT_OF_MEMORY = "out_of_memory"
    RECORD_DAMAGED = "record_damaged"
    UNSUPPORTED = "unsupported"
    #: The checkpoint has no chat template.
    CHAT_UNSUPPORTED = "chat_unsupported"
    DEADLINE_EXCEEDED = "deadline_exceeded"
    CANCELLED = "cancelled"
    INTERNAL = "internal"
    UNKNOWN_HOST = "unknown_host"
    ORIGIN_NOT_ALLOWED = "origin_not_allowed"


@dataclass(frozen=True, slots=True)
class Kind:
    """One row of the table of errors."""

    status: int
    title: str
    #: Whether the same request may succeed later.
    retryable: bool = False


KINDS: Mapping[Code, Kind] = {
    Code.INVALID_REQUEST: Kind(422, "The request is not valid"),
    Code.PROMPT_TOO_LONG: Kind(422, "The prompt is too long"),
    Code.CHAT_UNSUPPORTED: Kind(422, "The checkpoint cannot chat"),
    Code.BODY_TOO_LARGE: Kind(413, "The request body is too large"),
    Code.URI_TOO_LONG: Kind(414, "The path or query is too long"),
    Code.HEADERS_TOO_LARGE: Kind(431, "The headers are too large"),
    Code.MALFORMED_REQUEST: Kind(400, "The request is not HTTP"),
    Code.REQUEST_TIMEOUT: Kind(408, "The request took too long", retryable=True),
    Code.TOO_MANY_CONNECTIONS: Kind(503, "The server is busy", retryable=True),
    Code.NOT_FOUND: Kind(404, "Not found"),
    Code.GONE: Kind(410, "The job is no longer kept"),
    Code.NOT_RETRYABLE: Kind(409, "The job cannot be repeated"),
    Code.METHOD_NOT_ALLOWED: Kind(405, "Method not allowed"),
    Code.MODEL_NOT_FOUND: Kind(404, "No such model"),
    Code.MODEL_REQUIRED: Kind(422, "Several models are served: name one"),
    Code.IDEMPOTENCY_MISMATCH: Kind(422, "The idempotency key belongs to another request"),
    Code.QUEUE_FULL: Kind(429, "The queue is full", retryable=True),
    Code.MAX_QUEUE_POSITION: Kind(429, "The queue is longer than you want", retryable=True),
    Code.MODEL_NOT_LOADED: Kind(503, "Model not loaded", retryable=True),
    Code.NO_WORKERS: Kind(503, "No worker serves the model", retryable=True),
    Code.REDIS_UNAVAILABLE: Kind(503, "The queue is not available", retryable=True),
    Code.SCHEMA_MISMATCH: Kind(503, "The queue belongs to another version"),
    Code.JOB_LOST: Kind(503, "The queue has lost the job", retryable=True),
    Code.START_TIMEOUT: Kind(504, "The job was not started in time", retryable=True),
    Code.WAIT_TIMEOUT: Kind(504, "The answer is not ready yet"),
    Code.CHECKPOINT_CHANGED: Kind(503, "The checkpoint has changed", retryable=True),
    Code.CHECKPOINT_REMOVED: Kind(410, "The checkpoint was removed"),
    Code.CHECKPOINT_UNLOADABLE: Kind(503, "The checkpoint cannot be loaded", retryable=True),
    Code.WORKER_LOST: Kind(503, "The workers were lost", retryable=True),
    Code.RECORD_DAMAGED: Kind(500, "The job's record was damaged", retryable=True),
    Code.UNSUPPORTED: Kind(503, "The worker is too old for the request", retryable=True),
    Code.OUT_OF_MEMORY: Kind(503, "The worker is out of memory", retryable=True),
    Code.DEADLINE_EXCEEDED: Kind(504, "The job ran out of time"),
    Code.CANCELLED: Kind(409, "The job was cancelled"),
    Code.INTERNAL: Kind(500, "Internal error"),
    Code.UNKNOWN_HOST: Kind(421, "The server does not know this host"),
    Code.ORIGIN_NOT_ALLOWED: Kind(403, "Pages of this origin may not call the server"),
}


@dataclass(frozen=True, slots=True)
class FieldError:
    """One wrong part of a request, in pydantic's terms."""

    #: `("body", "prompt")`, `("query", "limit")`, `("header", "idempotency-key")`, ...
    loc: tuple[str | int, ...]
    msg: str
    type: str
    input: Any = None
    ctx: Mapping[str, Any] | None = None

    @property
    def path(self) -> tuple[str | int, ...]:
        """Where it is inside the body, the query or the headers; empty for the whole of it."""
        # For a body that is not JSON, FastAPI has the position in the text there.
        return () if self.type == "json_invalid" else self.loc[1:]

    def to_detail(self) -> dict[str, Any]:
        """The error in FastAPI's format."""
        detail: dict[str, Any] = {
            "type": self.type,
            "loc": list(self.loc),
            "msg": self.msg,
            "input": presentable(self.input),
        }
        if self.ctx:
            detail["ctx"] = presentable(dict(self.ctx))
        return detail

    def to_problem(self) -> dict[str, str]:
        """The error as an item of a problem's `errors`.

        It has a JSON pointer into the body, or the name of the parameter or header.
        """
        where, path = self.loc[0], self.path
        entry = {"detail": self.msg, "type": self.type}
        if where == "body":
            entry["pointer"] = "#" + "".join(f"/{_pointer_part(part)}" for part in path)
        elif where == "header" and path:
            entry["header"] = str(path[0])
        elif path:
            entry["parameter"] = str(path[0])
        return entry


@dataclass
class ApiError(Exception):
    """An error response. Raise it anywhere in a request; `api.http.error_handlers` builds the response."""

    code: Code
    #: A sentence for the user: what is wrong, and what to do about it.
    detail: str
    errors: Sequence[FieldError] = ()
    retry_after_s: int | None = None
    #: Additional members of the body, in both formats.
    extra: Mapping[str, Any] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    #: Overrides the status of the table; None: the table's.
    status: int | None = None

    def __post_init__(self) -> None:
        super().__init__(self.detail)

    @property
    def kind(self) -> Kind:
        """The row of `code` in the table."""
        return KINDS[self.code]

    @property
    def http_status(self) -> int:
        """The status of the response."""
        return self.kind.status if self.status is None else self.status

    def all_headers(self) -> dict[str, str]:
        """The headers of the response, with `Retry-After`."""
        retry = {} if self.retry_after_s is None else {"Retry-After": str(self.retry_after_s)}
        return {**self.headers, **retry}

    def to_legacy(self) -> dict[str, Any]:
        """The body on the guide's routes."""
        detail: Any = [error.to_detail() for error in self.errors] if self.errors else self.detail
        return {"detail": detail, **self.extra}

    def to_problem(self, instance: str) -> dict[str, Any]:
        """The body on all other routes. `instance` is the request's path."""
        problem: dict[str, Any] = {
            "type": f"urn:celeriac:problem:{self.code}",
            "title": self.kind.title,
            "status": self.http_status,
            "detail": self.detail,
            "instance": presentable(instance),
            "code": self.code.value,
            "retryable": self.kind.retryable,
        }
        if self.errors:
            problem["errors"] = [error.to_problem() for error in self.errors]
        return {**problem, **self.extra}


def shown(errors: Iterable[FieldError], count: int | None = None) -> list[FieldError]:
    """The first `MAX_ERRORS` errors. If there are more, a last entry says how many more.

    With `count`, the number of all errors, the others need not be made: only the first ones are read.
    """
    found = iter(errors)
    first = list(islice(found, MAX_ERRORS))
    more = sum(1 for _ in found) if count is None else count - len(first)
    if more > 0:
        where = first[0].loc[0]
        first.append(FieldError((where,), f"{more} more errors are not shown.", "more_errors"))
    return first


def summary(errors: Sequence[FieldError]) -> str:
    """All messages in one line, each after the name of its field."""
    return "; ".join(f"{'.'.join(map(str, error.path)) or error.loc[0]}: {error.msg}" for error in errors)


def invalid(
    loc: tuple[str | int, ...],
    msg: str,
    type_: str,
    *,
    given: Any = None,
    ctx: Mapping[str, Any] | None = None,
    code: Code = Code.INVALID_REQUEST,
) -> ApiError:
    """The error for one wrong field. `given` is the value, which the response repeats in part."""
    return ApiError(code, msg, errors=[FieldError(loc, msg, type_, given, ctx)])


def listed(names: Sequence[str]) -> str:
    """Names for a message; of many, only the first ones."""
    more = len(names) - MAX_ECHO_ITEMS
    return ", ".join(names[:MAX_ECHO_ITEMS]) + (f" and {more} more" if more > 0 else "")


def presentable(value: Any) -> Any:
    """A copy of `value` that every JSON encoder accepts: limited in size, finite, without lone surrogates.

    The time does not grow with the size of `value`, apart from the string of an object that is no JSON value.
    """
    return _Echo().copy(value, 0)


class _Echo:
    """Copies one value, in part if it is large."""

    def __init__(self) -> None:
        self._left = MAX_ECHO_IN_ALL

    def copy(self, value: Any, depth: int) -> Any:
        """A copy of `value`, which is inside `depth` containers."""
        self._left -= 1
        match value:
            case None | bool():
                return value
            case int():
                return value if abs(value) < 1 << 64 else "a very large number"
            case float():
                return value if math.isfinite(value) else str(value)
            case str():
                return self._text(value)
            case dict() | list() | tuple() if depth >= MAX_ECHO_DEPTH:
                return "..."
            case dict():
                members = islice(value.items(), MAX_ECHO_ITEMS)
                return {self._text(str(name)): self.copy(item, depth + 1) for name, item in members if self._left > 0}
            case list() | tuple():
                return [self.copy(item, depth + 1) for item in value[:MAX_ECHO_ITEMS] if self._left > 0]
            case bytes():
                return self._text(value[:MAX_ECHO_CHARACTERS].decode("latin-1"))
            case _:
                return self._text(str(value))

    def _text(self, text: str) -> str:
        short = _clean(text)
        self._left -= len(short)
        return short


def _clean(text: str) -> str:
    short = text if len(text) <= MAX_ECHO_CHARACTERS else text[:MAX_ECHO_CHARACTERS] + "..."
    return short.encode("utf-8", "backslashreplace").decode()


def _pointer_part(part: str | int) -> str:
    """The name of a member, or an index, as one part of a JSON pointer (RFC 6901)."""
    return _clean(str(part)).replace("~", "~0").replace("/", "~1")
