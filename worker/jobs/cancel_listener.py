"""Hears at once that a job of this worker was cancelled. A bell that is lost is covered by the next renewal."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress

import structlog
from redis import Redis
from redis.exceptions import RedisError

log = structlog.get_logger(__name__)

#: How long one read waits, in seconds.
POLL_S = 1.0


class BellListener:
    """A thread with one pub/sub connection."""

    def __init__(self, redis: Redis, channel: str, on_ring: Callable[[str], None]) -> None:
        """`on_ring` gets the message, which is a job id."""
        self._redis = redis
        self._channel = channel
        self._on_ring = on_ring
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="bell-listener", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread."""
        self._stopping.set()
        # Ends the read; without Redis it ends by itself.
        with suppress(RedisError):
            self._redis.publish(self._channel, "")
        self._thread.join()

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self._listen()
            except RedisError as error:
                log.warning("bell_listener_failed", error=str(error))
                self._stopping.wait(POLL_S)

    def _listen(self) -> None:
        with self._redis.pubsub(ignore_subscribe_messages=True) as pubsub:  # type: ignore[no-untyped-call]
            pubsub.subscribe(self._channel)
            while not self._stopping.is_set():
                message = pubsub.get_message(timeout=POLL_S)
                if message is not None and not self._stopping.is_set():
                    self._on_ring(message["data"].decode())
