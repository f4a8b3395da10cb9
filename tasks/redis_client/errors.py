"""What an error of Redis means.

Redis is *away*: it cannot be reached, or does not answer. It *refuses writes* for a while: it is full, its disk fails,
or it is a replica. Or it is *unusable*: it refuses the login or a permission, or is no Redis at all. That lasts until a
setting is changed. All other errors are those of one call, which fails each time it is sent.
"""

from __future__ import annotations

import re
import ssl
from collections.abc import Iterator

from redis.exceptions import (
    AuthenticationError,
    BusyLoadingError,
    ClusterDownError,
    DataError,
    InvalidResponse,
    MasterDownError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
    TryAgainError,
)

#: Codes of errors with which Redis refuses writes for a while: out of memory, disk full or failing, a replica, too few
#: replicas. In an error of a script the code is inside the message.
_REFUSALS = re.compile(r"\b(OOM|MISCONF|READONLY|NOREPLICAS|MASTERDOWN)\b")
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
#: A missing permission, in the words of Redis 6.2 (inside a script) and of later versions.
_NO_PERMISSION = re.compile(r"\bNOPERM\b|can't run this command|can't access at least one of the keys")


def refusal(error: RedisError) -> str | None:
    """The code of a refusal that ends by itself, such as `OOM`; None for any other error."""
    # redis-py has classes for some of them, and removes the code from their messages.
    if isinstance(error, OutOfMemoryError):
        return "OOM"
    if isinstance(error, ReadOnlyError):
        return "READONLY"
    if not isinstance(error, ResponseError):
        return None
    match = _REFUSALS.search(str(error))
    return None if match is None else match[1]


def is_permanent(error: RedisError) -> bool:
    """Whether the same call fails again: the data that it uses is damaged, or the call itself is wrong.

    False if Redis is away, or refuses commands for a while (no memory, no disk, a replica, missing permissions).
    """
    if isinstance(error, DataError):
        return True
    if not isinstance(error, ResponseError) or isinstance(error, _OF_SERVER) or is_no_permission(error):
        return False
    return _CODE_OF_SERVER.search(str(error)) is None


def describe(error: RedisError) -> str:
    """The error for logs, with the code that redis-py removes from some messages."""
    text = str(error)
    return text if error.status_code is None or text.startswith(error.status_code) else f"{error.status_code} {text}"


def is_demotion(error: ResponseError) -> bool:
    """Whether the error says that the server is a replica.

    After a failover, a new connection may lead to the new primary.
    """
    return refusal(error) in ("READONLY", "MASTERDOWN")


def is_no_permission(error: object) -> bool:
    """Whether the user of the connection lacks a permission."""
    return isinstance(error, NoPermissionError) or (
        isinstance(error, ResponseError) and _NO_PERMISSION.search(str(error)) is not None
    )


def is_loading(error: RedisError) -> bool:
    """Whether Redis still reads its data. It answers when it has read them."""
    return isinstance(error, BusyLoadingError)


def why_unusable(error: RedisError, address: str) -> str | None:
    """One sentence that says why Redis cannot be used as it is, and what to do; None for any other error.

    `address`: the URL without the password.
    """
    text = str(error)
    if isinstance(error, AuthenticationError):
        return _login_problem(error, address)
    if isinstance(error, InvalidResponse):
        return (
            f"The server at {address} does not speak the Redis protocol: it is another program, or it expects TLS "
            "(rediss://). Correct CELERIAC_REDIS_URL."
        )
    if (tls := next(_tls_errors(error), None)) is not None:
        return _tls_problem(tls, address)
    if not isinstance(error, ResponseError):
        return None
    if text.startswith("DENIED"):
        return (
            f"Redis at {address} is in protected mode and accepts no clients of other machines. Set a password "
            "(`requirepass`) in its configuration and in CELERIAC_REDIS_URL."
        )
    if is_no_permission(error):
        return (
            f"The user of CELERIAC_REDIS_URL lacks a permission on Redis at {address} ({text.rstrip('.')}). "
            "docs/reference/redis.md lists all that it needs."
        )
    if "DB index is out of range" in text or "SELECT is not allowed in cluster mode" in text:
        return f"Redis at {address} has no such database. Choose another number in CELERIAC_REDIS_URL."
    return None


def _login_problem(error: AuthenticationError, address: str) -> str:
    if error.status_code == "NOAUTH":
        return (
            f"Redis at {address} requires a password. Write it into CELERIAC_REDIS_URL, as in "
            "redis://:PASSWORD@host:6379/0."
        )
    if "without any password configured" in str(error):
        return (
            f"Redis at {address} has no password, but CELERIAC_REDIS_URL has one. Remove it there, or set it in Redis "
            "(`requirepass`)."
        )
    return f"Redis at {address} refuses the login: correct the user and the password in CELERIAC_REDIS_URL."


def _tls_errors(error: BaseException) -> Iterator[ssl.SSLError]:
    """The TLS errors behind an error."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLError):
            yield cause
        cause = cause.__cause__ or cause.__context__


def _tls_problem(error: ssl.SSLError, address: str) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return (
            f"The TLS certificate of Redis at {address} is not trusted: {error.verify_message}. Name the file of its "
            "certificate authority in CELERIAC_REDIS_URL: ?ssl_ca_certs=/path/to/ca.pem."
        )
    reason = (error.reason or "unknown error").replace("_", " ").lower()
    return (
        f"No TLS connection to Redis at {address} ({reason}). If it does not use TLS, write redis:// instead of "
        "rediss:// in CELERIAC_REDIS_URL."
    )
