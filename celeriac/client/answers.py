"""From the server's answers to results and exceptions. No network in here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import httpx

from celeriac.client.errors import (
    ApiError,
    InvalidRequestError,
    NotFoundError,
    QueueFullError,
    UnavailableError,
    UnexpectedAnswerError,
)

T = TypeVar("T")

#: Exception of each status that says what kind of error it is; any other is a plain ApiError.
KINDS: Mapping[int, type[ApiError]] = {
    400: InvalidRequestError,
    413: InvalidRequestError,
    422: InvalidRequestError,
    404: NotFoundError,
    410: NotFoundError,
    429: QueueFullError,
    502: UnavailableError,
    503: UnavailableError,
}
#: Characters of a foreign answer that an error repeats.
MAX_QUOTE = 200


def read(answer: httpx.Response, take: Callable[[Any], T]) -> T:
    """What `take` makes of a good answer's JSON. UnexpectedAnswerError where it is not what `take` knows."""
    try:
        return take(answer.json())
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise nonsense(answer, answer.text) from error


def error_of(answer: httpx.Response) -> ApiError:
    """The exception of an answer that is an error: problem details, or FastAPI's `detail`."""
    try:
        body = answer.json()
    except ValueError:
        body = None
    message = _message(body)
    if message is None:
        # A proxy, or another program. Its status may still say that it is worth another try.
        kind = KINDS[answer.status_code] if answer.status_code in (429, 502, 503) else UnexpectedAnswerError
        message = str(nonsense(answer, answer.text))
        body = {}
    else:
        kind = KINDS.get(answer.status_code, ApiError)
    return kind(
        message,
        status=answer.status_code,
        code=body.get("code"),
        retry_after_s=_retry_after(answer),
        may_retry=answer.headers.get("x-should-retry") != "false",
        job_id=body.get("job_id"),
        request_id=answer.headers.get("x-request-id"),
    )


def _message(body: Any) -> str | None:
    """The server's message; None where the body is no error of ours."""
    detail = body.get("detail") if isinstance(body, dict) else None
    if isinstance(detail, list):
        return "; ".join(_field_error(entry) for entry in detail)
    if not isinstance(detail, str):
        return None
    faults = [_problem_fault(entry) for entry in body.get("errors") or () if isinstance(entry, dict)]
    if [text for _, text in faults] == [detail]:
        return faults[0][0]
    return " ".join([detail, *(fault for fault, text in faults if text not in detail)])


def _problem_fault(entry: dict[str, Any]) -> tuple[str, str]:
    """`top_k: Input should be ...` of one entry of a problem's `errors`, and its text alone."""
    text = str(entry.get("detail", ""))
    where = str(entry.get("pointer") or entry.get("parameter") or entry.get("header") or "").removeprefix("#/")
    return (f"{where}: {text}" if where else text), text


def _field_error(entry: Any) -> str:
    """`max_tokens: Input should be ...` of one entry of FastAPI's list."""
    if not isinstance(entry, dict):
        return str(entry)
    where = ".".join(str(part) for part in list(entry.get("loc", ()))[1:])
    message = str(entry.get("msg", entry))
    return f"{where}: {message}" if where else message


def _retry_after(answer: httpx.Response) -> float | None:
    """Seconds of `Retry-After`; its other form, a date, is none that our server sends."""
    value = answer.headers.get("retry-after", "")
    return float(value) if value.isascii() and value.isdigit() else None


def nonsense(answer: httpx.Response, text: str) -> UnexpectedAnswerError:
    """The exception of an answer, or a part of one, that no server of ours would send."""
    words = " ".join(text.split())
    quote = words if len(words) <= MAX_QUOTE else f"{words[:MAX_QUOTE]}..."
    return UnexpectedAnswerError(
        f"{answer.request.url} answered with HTTP {answer.status_code} and something that is not Celeriac's: "
        f"{quote or 'nothing'}",
        status=answer.status_code,
    )
