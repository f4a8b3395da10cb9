"""Keeps programs of different layouts off one another's keys."""

from __future__ import annotations

import redis
import redis.asyncio

from tasks.errors import SchemaError
from tasks.store import keys


def check(client: redis.Redis) -> bool:
    """Mark an empty Redis with this layout's version. Whether it was empty. Raises SchemaError where it has another."""
    found = client.get(keys.SCHEMA)
    empty = found is None
    if empty:
        # Only now, so that a Redis that refuses writes can still be read.
        client.set(keys.SCHEMA, keys.SCHEMA_VERSION, nx=True)
        found = client.get(keys.SCHEMA)
    _compare(found)
    return empty


async def acheck(client: redis.asyncio.Redis) -> bool:
    """`check` for an asynchronous client."""
    found = await client.get(keys.SCHEMA)
    empty = found is None
    if empty:
        await client.set(keys.SCHEMA, keys.SCHEMA_VERSION, nx=True)
        found = await client.get(keys.SCHEMA)
    _compare(found)
    return empty


def _compare(found: object) -> None:
    text = found.decode(errors="replace") if isinstance(found, bytes) else str(found)
    if text != str(keys.SCHEMA_VERSION):
        raise SchemaError(text, keys.SCHEMA_VERSION)
