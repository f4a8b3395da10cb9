"""Logs what may happen thousands of times a second: the first time at once, and then a count every few seconds."""

from __future__ import annotations

import time
from typing import Any

import structlog

log = structlog.get_logger(__name__)

#: Shortest time between two lines about the same thing, in seconds.
EVERY_S = 10.0


class RareLog:
    """Lines about one thing."""

    def __init__(self, event: str) -> None:
        self._event = event
        self._count = 0
        self._logged_at = float("-inf")

    def warn(self, **fields: Any) -> None:
        """Count one occurrence, and log a line if the last one is old enough. `count`: since the last line."""
        self._count += 1
        now = time.monotonic()
        if now - self._logged_at >= EVERY_S:
            log.warning(self._event, count=self._count, **fields)
            self._count, self._logged_at = 0, now
