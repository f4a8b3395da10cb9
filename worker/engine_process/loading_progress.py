"""Logs the progress of loading every few seconds."""

from __future__ import annotations

import time

import structlog

log = structlog.get_logger(__name__)

#: Time between two lines, in seconds. What is loaded sooner gets no line.
EVERY_S = 2.0


class LoadingProgress:
    """The progress of one engine process. Its time begins now."""

    def __init__(self) -> None:
        self._began = self._logged_at = time.monotonic()

    def update(self, loaded_bytes: int, total_bytes: int) -> None:
        """Log a line if the last one is old enough."""
        now = time.monotonic()
        if now - self._logged_at >= EVERY_S:
            self._logged_at = now
            log.info(
                "loading_progress",
                loaded_bytes=loaded_bytes,
                total_bytes=total_bytes,
                elapsed_s=round(now - self._began, 1),
            )
