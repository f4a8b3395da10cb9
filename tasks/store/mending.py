"""Runs a script on a synchronous client, and mends the keys of the queue if it fails because of them."""

from __future__ import annotations

from typing import Any

import redis
import structlog
from redis.exceptions import ResponseError

from tasks.redis_client.errors import is_permanent
from tasks.store import scripts

log = structlog.get_logger(__name__)


def call_mended(client: redis.Redis, name: str, *arguments: scripts.Argument) -> Any:
    """The reply of a script.

    If it fails by itself, keys of the queue may hold a wrong type: that is mended, and the script runs again. Raises
    redis.exceptions.RedisError.
    """
    script = scripts.get(name)
    try:
        return script.call(client, *arguments)
    except ResponseError as error:
        if not is_permanent(error):
            raise
        log.error("script_failed", script=name, error=str(error))
        scripts.get("repair").call(client, *scripts.repair_arguments())
        return script.call(client, *arguments)
