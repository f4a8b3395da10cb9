"""Keeps programs with different layouts of the Redis keys apart. `lua/schema.lua` marks an empty Redis."""

from __future__ import annotations

from tasks.errors import SchemaError
from tasks.store import keys


def check_reply(reply: tuple[bytes, int]) -> bool:
    """Check the reply of `schema.lua` and return whether Redis was empty.

    Raises SchemaError if Redis holds keys in another layout.
    """
    found, empty = reply
    version = found.decode(errors="replace")
    if version != str(keys.SCHEMA_VERSION):
        raise SchemaError(version, keys.SCHEMA_VERSION)
    return bool(empty)
