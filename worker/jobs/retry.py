"""Repeated calls while Redis is away."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

import structlog
from redis.exceptions import RedisError

from tasks.redis_client.errors import describe, is_permanent

log = structlog.get_logger(__name__)

T = TypeVar("T")

#: An outage may last: how often each caller logs it, in seconds.
LOG_EVERY_S = 10.0


class RetryStoppedError(Exception):
    """The worker stops while Redis is away. The message is that of the last RedisError."""


def retry_while_redis_is_away(
    call: Callable[[], T],
    *,
    wait_s: float,
    wait_for_stop: Callable[[float], bool],
    event: str = "redis_away",
    **fields: object,
) -> T:
    """Call `call` until Redis replies, and return its result. `call` must be safe to repeat.

    A permanent error of this call (see `is_permanent`) is raised at once.

    `wait_for_stop` is called with `wait_s` after each failed call. It waits that many seconds, or less when the worker
    stops, and returns whether the worker stops: then this raises RetryStoppedError. So there is at least one call.
    The first failed call is logged under the name `event`, with `fields`, and later ones every `LOG_EVERY_S`.
    """
    logged_at = -LOG_EVERY_S
    while True:
        try:
            return call()
        except RedisError as error:
            if is_permanent(error):
                raise
            now = time.monotonic()
            if now >= logged_at + LOG_EVERY_S:
                log.warning(event, error=describe(error), **fields)
                logged_at = now
            if wait_for_stop(wait_s):
                raise RetryStoppedError(str(error)) from error
