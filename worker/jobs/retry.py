"""Repeated calls while Redis is away."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import structlog
from redis.exceptions import RedisError

from tasks.redis_errors import is_permanent

log = structlog.get_logger(__name__)

T = TypeVar("T")


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
    Each failed call is logged under the name `event`, with `fields`.
    """
    while True:
        try:
            return call()
        except RedisError as error:
            if is_permanent(error):
                raise
            log.warning(event, error=str(error), **fields)
            if wait_for_stop(wait_s):
                raise RetryStoppedError(str(error)) from error
