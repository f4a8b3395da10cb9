"""Distinguishes errors of Redis that end by themselves from those of one call, which fails each time it is sent."""

from __future__ import annotations

import re

from redis.exceptions import (
    ClusterDownError,
    DataError,
    MasterDownError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
    TryAgainError,
)

#: Classes of redis-py for errors of the server as a whole. redis-py removes their codes from the messages.
_OF_SERVER = (
    OutOfMemoryError,
    ReadOnlyError,
    NoPermissionError,
    MasterDownError,
    ClusterDownError,
    TryAgainError,
)
#: Codes of further errors of the server as a whole. In an error of a script the code is inside the message.
_CODE_OF_SERVER = re.compile(
    r"\b(OOM|MISCONF|READONLY|NOREPLICAS|MASTERDOWN|CLUSTERDOWN|TRYAGAIN|LOADING|BUSY|UNKILLABLE"
    r"|NOAUTH|WRONGPASS|NOPERM|killed|max number of clients)\b"
)


def is_permanent(error: RedisError) -> bool:
    """Whether the same call fails again: the data that it uses is damaged, or the call itself is wrong.

    False if Redis is away, or refuses commands for a while (no memory, no disk, a replica, missing permissions).
    """
    if isinstance(error, DataError):
        return True
    if not isinstance(error, ResponseError) or isinstance(error, _OF_SERVER):
        return False
    return _CODE_OF_SERVER.search(str(error)) is None
