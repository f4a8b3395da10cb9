"""Celery's consumer, with waits for a quick stop and for a short outage of Redis."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import structlog
from celery.exceptions import CPendingDeprecationWarning
from celery.worker.consumer import Consumer
from kombu import Connection
from redis.exceptions import ResponseError

log = structlog.get_logger(__name__)

#: How long one BRPOP waits for a message, in seconds. A worker that stops must wait until the last one has ended. With
#: 0.1 s, these waits would cost Redis more than anything else that an idle worker does.
BRPOP_S = 0.4
#: How much later Redis may end a BRPOP, in seconds: it checks these timeouts ten times a second.
BRPOP_LATE_S = 0.1
#: How often the events of tasks are sent to Flower and other listeners, in seconds.
EVENTS_EVERY_S = 1.0
#: The first and the longest wait between two attempts to connect, in seconds. Celery's own waits grow to 30 s.
FIRST_WAIT_S = 0.2
LONGEST_WAIT_S = 1.0


class EagerConsumer(Consumer):
    """Reconnects within about a second after Redis returns, and does not requeue messages that it took before.

    The task bodies of those messages continue in this process. After the visibility timeout such a message may be
    delivered again. Its job is then running or over, and the message is acknowledged.
    """

    #: Monotonic time until which events are collected.
    _events_due = 0.0

    def ensure_connected(self, conn: Connection) -> Connection:
        """Connect `conn`, and repeat that for as long as it takes."""
        # Celery calls this method without intervals, so kombu's defaults would be used.
        conn.ensure_connection = partial(
            conn.ensure_connection,
            interval_start=FIRST_WAIT_S,
            interval_step=FIRST_WAIT_S,
            interval_max=LONGEST_WAIT_S,
        )
        return super().ensure_connected(conn)

    def on_connection_error_after_connected(self, exc: Exception) -> None:
        """Close a connection that is broken, or on which Redis refuses commands."""
        if isinstance(exc, ResponseError):
            log.warning("redis_refuses", error=str(exc))
            # Connecting works, so there is no other wait before the next attempt.
            time.sleep(LONGEST_WAIT_S)
        # kombu would requeue the messages, and this worker would take them again. In kombu 5.7 it also uses the
        # connection that it has just closed for that, and the AttributeError ends the worker.
        for channel in self.connection.transport.channels:
            channel.do_restore = False
        with warnings.catch_warnings():
            # Celery warns each time that running tasks should be cancelled. Here they must continue.
            warnings.simplefilter("ignore", CPendingDeprecationWarning)
            super().on_connection_error_after_connected(exc)

    def on_send_event_buffered(self) -> None:
        """Called in any thread after an event. Celery itself then publishes in the next turn of the loop."""
        now = time.monotonic()
        # This is a time and not a flag, because Celery may cancel pending calls when a connection breaks.
        if now >= self._events_due:
            self._events_due = now + EVENTS_EVERY_S
            self.hub.call_soon(self.hub.call_later, EVENTS_EVERY_S, super().on_send_event_buffered)

    def call_soon_ack(self, p: Callable[..., None], *args: Any, **kwargs: Any) -> Any:
        """Make the main loop acknowledge or reject a message; `p` is a method of the message."""
        return super().call_soon_ack(partial(_unless_closed, p), *args, **kwargs)


def _unless_closed(acknowledge: Any, *args: Any, **kwargs: Any) -> None:
    """Acknowledge unless the channel is closed. Runs in the main loop, the only thread that closes channels."""
    if not acknowledge.__self__.channel.closed:
        acknowledge(*args, **kwargs)
