"""Request parameters that several routes take, as FastAPI dependencies."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Header, Path, Request
from pydantic import WithJsonSchema

from api.http.request_headers import Preferences, SubmitHeaders, parse_cancel_after, parse_prefer

#: A header whose lines are read one by one is a single string in the OpenAPI document.
_ONE_LINE = WithJsonSchema({"type": "string"})


async def _url_prefix(request: Request) -> str:
    prefix: str = request.scope.get("root_path", "")
    return prefix


async def _preferences(
    prefer: Annotated[
        list[str] | None,
        _ONE_LINE,
        Header(description="RFC 7240: `wait=N` (wait at most N seconds), `respond-async` (do not wait for the text)."),
    ] = None,
) -> Preferences:
    return parse_prefer(prefer or [])


async def _key_lines(
    idempotency_key: Annotated[
        list[str] | None,
        _ONE_LINE,
        Header(description='A key of your own, such as `"8e03978e-40d5"`. A repeated request finds its first job.'),
    ] = None,
) -> list[str]:
    return idempotency_key or []


async def _cancel_after(
    cancel_after: Annotated[
        str | None,
        Header(description="How long the whole job may take, such as `30s` or `1m30s`; the same as `deadline_s`."),
    ] = None,
) -> float | None:
    return None if cancel_after is None else parse_cancel_after(cancel_after)


JobIdPath = Annotated[str, Path(description="Id of a job.", examples=["job_01JZ8K6T4V9QABCDEFGHJKMNPQ"])]
LastEventIdHeader = Annotated[
    str | None, Header(alias="Last-Event-ID", description="The `id` of the last event that you received.")
]
#: The prefix that a proxy adds to all paths; empty without one.
UrlPrefixDep = Annotated[str, Depends(_url_prefix)]
#: The lines of `Idempotency-Key`, not parsed yet: errors in the body are reported before a malformed key.
KeyLinesDep = Annotated[list[str], Depends(_key_lines)]


async def _submit_headers(
    preferences: Annotated[Preferences, Depends(_preferences)],
    key_lines: KeyLinesDep,
    cancel_after_s: Annotated[float | None, Depends(_cancel_after)],
) -> SubmitHeaders:
    return SubmitHeaders(preferences, key_lines, cancel_after_s)


SubmitHeadersDep = Annotated[SubmitHeaders, Depends(_submit_headers)]
