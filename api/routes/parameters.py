"""Header parameters that several routes take."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Header
from pydantic import WithJsonSchema

from api.prefer import Preferences, parse_prefer

#: What the document says of a header whose lines we read one by one.
_ONE_LINE = WithJsonSchema({"type": "string"})


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


PreferencesDep = Annotated[Preferences, Depends(_preferences)]
#: The lines of the `Idempotency-Key` header; `api.idempotency` reads them.
KeyLinesDep = Annotated[list[str], Depends(_key_lines)]
