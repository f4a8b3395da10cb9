"""Keeps programs of different layouts off one another's keys."""

from __future__ import annotations

import redis
import redis.asyncio

from tasks import keys
from tasks.errors import SchemaError


def check(client: redis.Redis) -> None:
    """Mark an empty Redis with this layout's version. Raises SchemaError where another one is there."""
    found = client.get(keys.SCHEMA)
    if found is None:
        # Only now, so that a Redis that refuses writes can still be read.
        client.set(keys.SCHEMA, keys.SCHEMA_VERSION, nx=True)
        found = client.get(keys.SCHEMA)
    _compare(found)


async def acheck(client: redis.asyncio.Redis) -> None:
    """`check` for an asynchronous client."""
    found = await client.get(keys.SCHEMA)
    if found is None:
        await client.set(keys.SCHEMA, keys.SCHEMA_VERSION, nx=True)
        found = await client.get(keys.SCHEMA)
    _compare(found)


def _compare(found: object) -> None:
    text = found.decode(errors="replace") if isinstance(found, bytes) else str(found)
    if text != str(keys.SCHEMA_VERSION):
        raise SchemaError(text, keys.SCHEMA_VERSION)
