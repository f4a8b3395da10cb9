"""Keeps programs with different layouts of the Redis keys apart. `lua/schema.lua` marks an empty Redis."""

from __future__ import annotations

from tasks.errors import SchemaError
from tasks.store import keys


def was_empty(reply: tuple[bytes, int]) -> bool:
    """Whether Redis was empty, from the reply of `schema.lua`. Raises SchemaError if Redis has another layout."""
    found, empty = reply
    version = found.decode(errors="replace")
    if version != str(keys.SCHEMA_VERSION):
        raise SchemaError(version, keys.SCHEMA_VERSION)
    return bool(empty)
