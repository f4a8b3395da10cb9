"""Header parameters that several routes take."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Header, Path
from pydantic import WithJsonSchema

from api.http.cancel_after import parse_cancel_after
from api.http.request_headers import Preferences, parse_prefer

#: What the document says of a header whose lines we read one by one.
_ONE_LINE = WithJsonSchema({"type": "string"})


JobIdPath = Annotated[str, Path(description="Id of a job.", examples=["job_01JZ8K6T4V9QABCDEFGHJKMNPQ"])]


async def _preferences(
    prefer: Annotated[
        list[str] | None,
        _ONE_LINE,
        Header(description="RFC 7240: `wait=N` (wait up to N seconds), `respond-async` (do not wait for the text)."),
    ] = None,
) -> Preferences:
    return parse_prefer(prefer or [])


async def _key_lines(
    idempotency_key: Annotated[
        list[str] | None,
        _ONE_LINE,
        Header(description='A key of your own, as `"8e03978e-40d5"`: the same request sent again finds its job.'),
    ] = None,
) -> list[str]:
    return idempotency_key or []


async def _cancel_after(
    cancel_after: Annotated[
        str | None,
        Header(description="How long the whole job may take, as `30s` or `1m30s`; the same as `deadline_s`."),
    ] = None,
) -> float | None:
    return None if cancel_after is None else parse_cancel_after(cancel_after)


#: Seconds of `Cancel-After`; None without it.
CancelAfterDep = Annotated[float | None, Depends(_cancel_after)]
LastEventIdHeader = Annotated[
    str | None, Header(alias="Last-Event-ID", description="The `id` of the last event that you got.")
]
PreferencesDep = Annotated[Preferences, Depends(_preferences)]
#: The lines of the `Idempotency-Key` header; `api.http.idempotency` reads them.
KeyLinesDep = Annotated[list[str], Depends(_key_lines)]
