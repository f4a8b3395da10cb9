"""Redis clients, and the URLs that they and kombu use.

A command is sent again if its connection was broken, but not if its reply timed out. Sending it again is safe, because
every write is an idempotent script. A connection to a server that has become a replica is replaced.
"""

from __future__ import annotations

import os
from typing import Any
from urllib.parse import parse_qs, quote, urlencode, urlsplit, urlunsplit

import redis
import redis.asyncio
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import ConstantBackoff
from redis.connection import parse_url
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.retry import Retry

from tasks.errors import ConfigurationError
from tasks.redis_client.pool import SharedOutagePool
from tasks.redis_client.reconnecting import RECONNECTING
from tasks.settings import Settings

#: Retries after a broken connection. A restarted Redis leaves broken connections in the pool; a retry makes a new one.
RETRIES = 1
RETRY_AFTER_S = 0.02
#: Options of a URL that name files.
FILE_OPTIONS = ("ssl_ca_certs", "ssl_ca_path", "ssl_certfile", "ssl_keyfile")
#: Connections of one API process for commands and subscriptions, for any number of clients.
MAX_CONNECTIONS = 32
#: How long a call waits for a free connection, as a multiple of `redis_timeout_s`. It is longer than the time for a
#: command: when a thousand clients connect at once, this process is busy, but Redis is not away.
CONNECTION_WAIT_FACTOR = 4


def make_sync(settings: Settings) -> redis.Redis:
    """A client for threads. It connects at the first command. Raises ConfigurationError."""
    retry = Retry(ConstantBackoff(RETRY_AFTER_S), RETRIES, supported_errors=(RedisConnectionError,))
    options = parse(settings.redis_url)
    pool = redis.ConnectionPool(
        connection_class=RECONNECTING[options.pop("connection_class", redis.Connection)],
        retry=retry,
        **{**_options(settings), **options},
    )
    return redis.Redis.from_pool(pool)


def make_async(settings: Settings) -> redis.asyncio.Redis:
    """A client for asyncio. Its callers share a small pool of connections. Raises ConfigurationError."""
    retry = AsyncRetry(ConstantBackoff(RETRY_AFTER_S), RETRIES, supported_errors=(RedisConnectionError,))
    parse(settings.redis_url)
    pool = SharedOutagePool.from_url(
        settings.redis_url,
        max_connections=MAX_CONNECTIONS,
        timeout=CONNECTION_WAIT_FACTOR * settings.redis_timeout_s,
        answer_within_s=settings.redis_timeout_s,
        retry=retry,
        **_options(settings),
    )
    return redis.asyncio.Redis.from_pool(pool)


def parse(url: str) -> dict[str, Any]:
    """The options that redis-py reads from a URL. Raises ConfigurationError."""
    try:
        _ = urlsplit(url).port
    except ValueError:
        # The message of this error may contain a part of the password.
        raise ConfigurationError(
            "CELERIAC_REDIS_URL is not a URL: its host or port is invalid. In a password, write each special character "
            "as % and two digits, such as %23 for #"
        ) from None
    try:
        options: dict[str, Any] = dict(parse_url(url))  # type: ignore[no-untyped-call]
    except ValueError as error:
        # The message of such an error may quote a part of the password.
        reason = "the port is not a number. Special characters of a password must be percent-encoded, such as %23 for #"
        raise ConfigurationError(f"CELERIAC_REDIS_URL: {reason if 'Port' in str(error) else error}") from None
    if urlsplit(url).scheme == "unix" and not options.get("path"):
        raise ConfigurationError("CELERIAC_REDIS_URL: a unix:// URL needs a path, as in unix:///run/redis.sock?db=0")
    _check_options(options)
    return options


def _check_options(options: dict[str, Any]) -> None:
    """Check the part after the question mark. Raises ConfigurationError."""
    try:
        # This does not connect.
        redis.ConnectionPool(**options).make_connection()
    except TypeError as error:
        raise ConfigurationError(f"CELERIAC_REDIS_URL has an option that does not exist: {error}") from None
    except (redis.RedisError, ValueError) as error:
        raise ConfigurationError(f"CELERIAC_REDIS_URL: {error}") from None
    for name in FILE_OPTIONS:
        if (path := options.get(name)) is not None and not os.access(path, os.R_OK):
            raise ConfigurationError(f"CELERIAC_REDIS_URL: {name}={path} is not a file that can be read")


def broker_url(url: str) -> str:
    """The URL of the same Redis in kombu's syntax. Raises ConfigurationError."""
    options = parse(url)
    parts = urlsplit(url)
    database = options.get("db", 0)
    # redis-py also reads them from the part after the question mark; kombu does not.
    user, password = options.get("username") or "", options.get("password") or ""
    login = f"{quote(user, safe='')}:{quote(password, safe='')}@" if user or password else ""
    if parts.scheme == "unix":
        return f"redis+socket://{login}{quote(options['path'])}?virtual_host={database}"
    tls = {name: values[-1] for name, values in parse_qs(parts.query).items() if name.startswith("ssl_")}
    if parts.scheme == "rediss":
        # By default, kombu accepts any certificate.
        tls.setdefault("ssl_cert_reqs", "required")
    address = parts.netloc.rpartition("@")[2]
    return urlunsplit((parts.scheme, f"{login}{address}", f"/{database}", urlencode(tls), ""))


def redacted(url: str) -> str:
    """The URL without user, password and options, for logs."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def _options(settings: Settings) -> dict[str, Any]:
    timeout_s = settings.redis_timeout_s
    return {"socket_timeout": timeout_s, "socket_connect_timeout": timeout_s, "protocol": 2}
