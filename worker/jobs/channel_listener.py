"""Receives the notifications on a channel of Redis, in a thread.

A lost notification only delays what it is about, because each of them is also found by asking once a second.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress

import structlog
from redis import Redis
from redis.exceptions import RedisError

from tasks.redis_client.errors import describe

log = structlog.get_logger(__name__)

#: How long one read waits, and how long to wait after an error, in seconds.
POLL_S = 1.0


class ChannelListener:
    """A thread with one pub/sub connection."""

    def __init__(self, redis: Redis, channel: str, on_message: Callable[[str], None], *, name: str) -> None:
        """`on_message` is called in the thread, with what each notification carries. `name`: for the log."""
        self._redis = redis
        self._channel = channel
        self._on_message = on_message
        self._name = name
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"{name}-listener", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Stop the thread and wait for its end."""
        self._stopping.set()
        # This ends the thread's read. Without Redis the read fails, or ends after `POLL_S`.
        with suppress(RedisError):
            self._redis.publish(self._channel, "")
        self._thread.join()

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self._listen()
            except RedisError as error:
                log.warning(f"{self._name}_listener_failed", error=describe(error))
                self._stopping.wait(POLL_S)

    def _listen(self) -> None:
        with self._redis.pubsub(ignore_subscribe_messages=True) as pubsub:  # type: ignore[no-untyped-call]
            pubsub.subscribe(self._channel)
            while not self._stopping.is_set():
                message = pubsub.get_message(timeout=POLL_S)
                if message is not None and not self._stopping.is_set():
                    self._on_message(message["data"].decode(errors="replace"))
