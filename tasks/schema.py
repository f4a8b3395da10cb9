"""Keeps programs of different layouts off one another's keys."""

from __future__ import annotations

import redis
import redis.asyncio

from tasks import keys
from tasks.errors import SchemaError


def check(client: redis.Redis) -> None:
    """Mark an empty Redis with this layout's version. Raises SchemaError where another one is there."""
    client.set(keys.SCHEMA, keys.SCHEMA_VERSION, nx=True)
    _compare(client.get(keys.SCHEMA))


async def acheck(client: redis.asyncio.Redis) -> None:
    """`check` for an asynchronous client."""
    await client.set(keys.SCHEMA, keys.SCHEMA_VERSION, nx=True)
    _compare(await client.get(keys.SCHEMA))


def _compare(found: object) -> None:
    text = found.decode(errors="replace") if isinstance(found, bytes) else str(found)
    if text != str(keys.SCHEMA_VERSION):
        raise SchemaError(text, keys.SCHEMA_VERSION)
