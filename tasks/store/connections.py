"""Clients of Redis. A command that found its connection broken is sent again; one that got no reply in time is not.

That is safe because every write goes through a script that acts once however often it is sent.
"""

from __future__ import annotations

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
from tasks.settings import Settings

#: Tries after a broken connection: a restarted Redis leaves stale ones in the pool, and the next one is fresh.
RETRIES = 1
RETRY_AFTER_S = 0.02
#: Connections of one API process for commands and bells, however many clients wait.
MAX_CONNECTIONS = 32
#: A call may wait this many times as long for one of them as Redis may take to answer: when a thousand clients connect
#: at once it is this process that is busy, not Redis that is away.
PATIENCE_FOR_CONNECTION = 4


def make_sync(settings: Settings) -> redis.Redis:
    """A client for threads. Connects at the first command. Raises ConfigurationError."""
    retry = Retry(ConstantBackoff(RETRY_AFTER_S), RETRIES, supported_errors=(RedisConnectionError,))
    parse(settings.redis_url)
    return redis.Redis.from_url(settings.redis_url, retry=retry, **_options(settings))


def make_async(settings: Settings) -> redis.asyncio.Redis:
    """A client for asyncio, with few connections that its callers take in turns. Raises ConfigurationError."""
    retry = AsyncRetry(ConstantBackoff(RETRY_AFTER_S), RETRIES, supported_errors=(RedisConnectionError,))
    parse(settings.redis_url)
    pool = redis.asyncio.BlockingConnectionPool.from_url(
        settings.redis_url,
        max_connections=MAX_CONNECTIONS,
        timeout=PATIENCE_FOR_CONNECTION * settings.redis_timeout_s,
        retry=retry,
        **_options(settings),
    )
    return redis.asyncio.Redis.from_pool(pool)


def parse(url: str) -> dict[str, Any]:
    """Options of a connection, as redis-py reads them from a URL. Raises ConfigurationError."""
    try:
        options: dict[str, Any] = dict(parse_url(url))  # type: ignore[no-untyped-call]
    except ValueError as error:
        raise ConfigurationError(f"CELERIAC_REDIS_URL: {error}") from None
    if urlsplit(url).scheme == "unix" and not options.get("path"):
        raise ConfigurationError("CELERIAC_REDIS_URL: a unix:// URL needs a path, as in unix:///run/redis.sock?db=0")
    return options


def broker_url(url: str) -> str:
    """How kombu spells `url`. Raises ConfigurationError."""
    options = parse(url)
    parts = urlsplit(url)
    database = options.get("db", 0)
    if parts.scheme == "unix":
        user, password = options.get("username") or "", options.get("password") or ""
        login = f"{quote(user, safe='')}:{quote(password, safe='')}@" if user or password else ""
        return f"redis+socket://{login}{quote(options['path'])}?virtual_host={database}"
    tls = {name: values[-1] for name, values in parse_qs(parts.query).items() if name.startswith("ssl_")}
    if parts.scheme == "rediss":
        # kombu's own default is to trust anybody.
        tls.setdefault("ssl_cert_reqs", "required")
    return urlunsplit((parts.scheme, parts.netloc, f"/{database}", urlencode(tls), ""))


def redacted(url: str) -> str:
    """A URL for logs: without its user, its password and its options."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def _options(settings: Settings) -> dict[str, Any]:
    timeout_s = settings.redis_timeout_s
    return {"socket_timeout": timeout_s, "socket_connect_timeout": timeout_s, "protocol": 2}
