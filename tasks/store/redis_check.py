"""The check of Redis at the start of each role: what kind of server it is, and what this user may do there.

A server that can never serve the queue is told as such, not as one that is away.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import redis
import structlog
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from tasks.errors import RedisUnusableError
from tasks.redis_client.connections import make_sync, redacted
from tasks.redis_client.errors import is_no_permission, why_unusable
from tasks.redis_client.transport import tls_mismatch
from tasks.settings import Settings
from tasks.store import keys

log = structlog.get_logger(__name__)

#: The oldest version with all commands that the scripts use.
OLDEST_VERSION = (6, 2)

#: Commands of our scripts and clients, and of kombu, that get one key and a value. On a string key they fail without
#: any effect.
_KEY_COMMANDS: Mapping[str, Sequence[str]] = {
    **dict.fromkeys(("EXISTS", "GET", "HGETALL", "HKEYS", "HLEN", "LLEN", "PERSIST", "RPOP"), ()),
    **dict.fromkeys(("SCARD", "SMEMBERS", "ZCARD", "ZPOPMIN"), ()),
    **dict.fromkeys(("HDEL", "HEXISTS", "HGET", "HMGET", "HSTRLEN", "LPOS", "LPUSH", "RPUSH"), ("check",)),
    **dict.fromkeys(("SADD", "SREM"), ("check",)),
    "HRANDFIELD": ("1",),
    **dict.fromkeys(("ZRANK", "ZREM", "ZSCORE", "SISMEMBER"), ("check",)),
    **dict.fromkeys(("LRANGE", "LTRIM", "ZRANGE", "ZREVRANGE"), ("0", "0")),
    **dict.fromkeys(("ZCOUNT", "ZRANGEBYSCORE", "ZREVRANGEBYSCORE", "ZREMRANGEBYSCORE"), ("0", "0")),
    **dict.fromkeys(("XRANGE", "XREVRANGE"), ("-", "-")),
    **dict.fromkeys(("HSET", "HSETNX"), ("check", "check")),
    "BRPOP": ("0.01",),
    "HINCRBY": ("check", "1"),
    **dict.fromkeys(("DECRBY", "INCRBY"), ("0",)),
    "PEXPIRE": ("1000",),
    "PEXPIREAT": ("99999999999999",),
    "PTTL": (),
    "TYPE": (),
    "XADD": ("*", "check", "check"),
    "ZADD": ("0", "check"),
    "ZRANDMEMBER": (),
}
#: kombu's keys, each standing for its kind: the message lists, the messages that are not acknowledged, the tables of
#: control commands and of events.
_KOMBU_KEYS = (
    keys.queue("check"),
    "unacked",
    "unacked_index",
    "unacked_mutex",
    "_kombu.binding.celery.pidbox",
    "check.celery.pidbox",
    "check.reply.celery.pidbox",
)
#: The patterns of control commands and of events. A permission for such a pattern must be the pattern itself.
_KOMBU_PATTERNS = ("/{db}.celery.pidbox", "/{db}.celeryev/*")


def check_redis(settings: Settings) -> None:
    """Check the Redis of the settings, with connections of its own.

    Raises RedisUnusableError with one sentence if it can never serve the queue, and RedisError if it is away or still
    loads its data. Logs a warning about a setting of Redis with which jobs can get lost.
    """
    address = redacted(settings.redis_url)
    with make_sync(settings) as client:
        try:
            _check_server(client, address)
            missing = [*_missing_permissions(client), *_missing_channels(client)]
        except RedisError as error:
            problem = why_unusable(error, address)
            if problem is None and isinstance(error, (RedisConnectionError, RedisTimeoutError)):
                problem = tls_mismatch(settings.redis_url)
            if problem is not None:
                raise RedisUnusableError(problem) from error
            raise
        if missing:
            raise RedisUnusableError(
                f"The user of CELERIAC_REDIS_URL lacks permissions on Redis at {address}: {', '.join(missing)}. "
                "docs/reference/redis.md lists all that it needs."
            )
        _warn_of_evictions(client)


def _check_server(client: redis.Redis, address: str) -> None:
    try:
        flat: Any = client.execute_command("HELLO")  # type: ignore[no-untyped-call]
    except ResponseError as error:
        if "unknown command" not in str(error).lower():
            raise
        # HELLO came with version 6.
        raise _too_old(address, _info(client).get("redis_version", "older than 6")) from error
    fields = dict(zip(flat[::2], flat[1::2], strict=True)) if isinstance(flat, list) else flat
    hello = {_text(name): _text(value) for name, value in fields.items()}
    if hello["mode"] == "sentinel":
        raise RedisUnusableError(
            f"The server at {address} is a Redis Sentinel, which holds no data. Set CELERIAC_REDIS_URL to the primary."
        )
    if hello["mode"] == "cluster":
        raise RedisUnusableError(
            f"Redis at {address} runs in cluster mode, which Celery does not support. Use a server with "
            "`cluster-enabled no`."
        )
    if hello["role"] not in ("master", "primary"):
        raise RedisUnusableError(
            f"Redis at {address} is a replica, which accepts no writes. Set CELERIAC_REDIS_URL to the primary."
        )
    version = hello["version"]
    if version_tuple(version) < OLDEST_VERSION:
        raise _too_old(address, version)


def version_tuple(version: str) -> tuple[int, ...]:
    """`7.2.5` as (7, 2, 5). Parts that are not numbers end it."""
    parts: list[int] = []
    for part in version.split("."):
        if not part.isdigit():
            break
        parts.append(int(part))
    return tuple(parts)


def _too_old(address: str, version: str) -> RedisUnusableError:
    oldest = ".".join(map(str, OLDEST_VERSION))
    return RedisUnusableError(
        f"Redis at {address} has version {version}, and Celeriac needs {oldest} or later. Update it, or set "
        "CELERIAC_REDIS_URL to a newer one."
    )


def _info(client: redis.Redis, *sections: str) -> dict[str, Any]:
    """INFO; empty if this user may not use it."""
    try:
        found: dict[str, Any] = client.info(*sections)
    except ResponseError as error:
        if is_no_permission(error):
            return {}
        raise
    return found


def _missing_permissions(client: redis.Redis) -> Iterator[str]:
    """Commands and keys that this user may not use."""
    key = f"{keys.PREFIX}check:{secrets.token_hex(8)}"
    commands: list[tuple[str, tuple[str, ...]]] = [
        # First, so that all others find a string, and change nothing.
        ("SET", ("SET", key, "check", "PX", "10000")),
        *((name, (name, key, *arguments)) for name, arguments in _KEY_COMMANDS.items()),
        *((name, (name,)) for name in ("TIME", "PING", "UNWATCH")),
        ("SCAN", ("SCAN", "0", "COUNT", "1")),
        ("WATCH", ("WATCH", key)),
        ("MULTI", ("MULTI",)),
        ("EXEC", ("EXEC",)),
        ("SCRIPT LOAD", ("SCRIPT", "LOAD", "return 1")),
        ("EVALSHA", ("EVALSHA", "e0e1f9fabfc9d4800c877a703b823ac0578ff8db", "0")),
        ("EVAL", ("EVAL", "return 1", "0")),
        ("PUBLISH", ("PUBLISH", f"{keys.PREFIX}check", "")),
        ("DEL", ("DEL", key)),
        # These change nothing, whatever is in the key.
        *((f"~{name}", (command, name, "check")) for name in _KOMBU_KEYS for command in ("ZSCORE", "ZREM")),
    ]
    with client.pipeline(transaction=False) as pipeline:
        for _, command in commands:
            # Unlike `execute_command`, it does not send WATCH at once.
            pipeline.pipeline_execute_command(*command)
        replies = pipeline.execute(raise_on_error=False)
    missing = (name for (name, _), reply in zip(commands, replies, strict=True) if is_no_permission(reply))
    yield from dict.fromkeys(missing)


def _missing_channels(client: redis.Redis) -> Iterator[str]:
    """Channels and patterns that this user may not subscribe to, each after the command."""
    db = client.get_connection_kwargs().get("db", 0)
    patterns = [pattern.format(db=db) for pattern in _KOMBU_PATTERNS]
    for command, name in (("SUBSCRIBE", f"{keys.PREFIX}check"), *(("PSUBSCRIBE", pattern) for pattern in patterns)):
        with client.pubsub() as pubsub:  # type: ignore[no-untyped-call]
            try:
                (pubsub.subscribe if command == "SUBSCRIBE" else pubsub.psubscribe)(name)
                pubsub.get_message(timeout=client.get_connection_kwargs()["socket_timeout"])
            except ResponseError as error:
                if not is_no_permission(error):
                    raise
                yield f"{command} &{name}"


def _warn_of_evictions(client: redis.Redis) -> None:
    policy = _info(client, "memory").get("maxmemory_policy", "noeviction")
    if policy != "noeviction":
        log.warning(
            "redis_may_evict_jobs",
            policy=policy,
            what="a Redis with this maxmemory-policy deletes keys when it is full; set maxmemory-policy noeviction",
        )


def _text(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)
