"""Turns the server's responses into results and exceptions. Does no I/O."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
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

_TITLE = re.compile(r"<title[^>]*>(.*?)</title>", re.IGNORECASE | re.DOTALL)

#: HTTP status: class of the exception. Other statuses give a plain ApiError.
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
#: Most faults of a request that an error message names.
MAX_FAULTS = 3
#: Most characters of an unexpected response that an error message quotes.
MAX_QUOTE = 200


def parsed(response: httpx.Response, parse: Callable[[Any], T]) -> T:
    """The JSON of a successful response, parsed. Raises UnexpectedAnswerError if `parse` cannot parse it."""
    try:
        return parse(response.json())
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise unexpected_response(response, response.text) from error


def error_of(response: httpx.Response) -> ApiError:
    """The exception of an error response: problem details (RFC 9457), or FastAPI's `detail`."""
    try:
        body = response.json()
    except ValueError:
        body = None
    message = _message(body)
    if message is None:
        # A proxy or another program sent this response. Its status may still say that a retry is useful.
        kind = KINDS[response.status_code] if response.status_code in (429, 502, 503) else UnexpectedAnswerError
        message = str(unexpected_response(response, response.text))
        body = {}
    else:
        kind = KINDS.get(response.status_code, ApiError)
    return kind(
        message,
        status=response.status_code,
        code=body.get("code"),
        retry_after_s=_retry_after(response),
        may_retry=response.headers.get("x-should-retry") != "false",
        job_id=body.get("job_id"),
        request_id=response.headers.get("x-request-id"),
    )


def _message(body: Any) -> str | None:
    """The server's message; None if the body is not an error of Celeriac."""
    detail = body.get("detail") if isinstance(body, dict) else None
    if isinstance(detail, list):
        return "; ".join(_first_of_each(_field_error(entry) for entry in detail))
    if not isinstance(detail, str):
        return None
    faults = [_problem_fault(entry) for entry in body.get("errors") or () if isinstance(entry, dict)]
    if [text for _, text in faults] == [detail]:
        return ": ".join(filter(None, faults[0]))
    return " ".join([detail, *_first_of_each((where, text) for where, text in faults if text not in detail)])


def _first_of_each(faults: Iterable[tuple[str, str]]) -> Iterator[str]:
    """The first fault of each field, as `top_k: Input should be ...`, at most `MAX_FAULTS`, and whether there are more.

    A prompt may have a hundred characters that are not in the vocabulary.
    """
    given = list(faults)
    first = dict(reversed(given))
    for where in list(dict.fromkeys(where for where, _ in given))[:MAX_FAULTS]:
        yield f"{where}: {first[where]}" if where else first[where]
    if len(given) > min(len(first), MAX_FAULTS):
        yield "(and more)"


def _problem_fault(entry: dict[str, Any]) -> tuple[str, str]:
    """The field and the text of one entry of a problem's `errors`."""
    text = str(entry.get("detail", ""))
    where = str(entry.get("pointer") or entry.get("parameter") or entry.get("header") or "").removeprefix("#/")
    return where, text


def _field_error(entry: Any) -> tuple[str, str]:
    """The field and the text of one entry of FastAPI's list of errors."""
    if not isinstance(entry, dict):
        return "", str(entry)
    where = ".".join(str(part) for part in list(entry.get("loc", ()))[1:])
    return where, str(entry.get("msg", entry))


def _retry_after(response: httpx.Response) -> float | None:
    """`Retry-After` in seconds; None if it is missing or a date, which the Celeriac server never sends."""
    value = response.headers.get("retry-after", "")
    return float(value) if value.isascii() and value.isdigit() else None


def unexpected_response(response: httpx.Response, text: str) -> UnexpectedAnswerError:
    """The exception of a response, or of a part of it (`text`), that does not come from a Celeriac server."""
    # Of a web page only the title is of use to people.
    title = _TITLE.search(text)
    words = " ".join((text if title is None else title[1]).split())
    quote = words if len(words) <= MAX_QUOTE else f"{words[:MAX_QUOTE]}..."
    return UnexpectedAnswerError(
        f"{response.request.url} responded with HTTP {response.status_code} and something that is not Celeriac's: "
        f"{quote or 'nothing'}. Check the URL: another program may listen there.",
        status=response.status_code,
    )
