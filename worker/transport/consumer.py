"""Celery's consumer, with waits that suit a quick stop and a short outage of Redis."""

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

#: How long one wait for a message takes, in seconds. A worker that stops has to see the last one to its end.
BRPOP_S = 0.1
#: How much later than that Redis may end it: it looks at its clock ten times a second.
BRPOP_LATE_S = 0.1
#: Events of tasks are told to Flower and other listeners together, this often, in seconds.
EVENTS_EVERY_S = 0.2
#: Seconds between two tries: the first wait, and the longest. Celery's own grow to 30.
FIRST_WAIT_S = 0.2
LONGEST_WAIT_S = 1.0


class EagerConsumer(Consumer):
    """Finds a returned Redis within about a second, and leaves the messages of before as they are.

    The bodies of those messages go on in this process. Where such a message turns up again after the visibility
    timeout, its job is running or over, and it is acknowledged then.
    """

    #: Time of the monotonic clock until which events are gathered.
    _events_due = 0.0

    def ensure_connected(self, conn: Connection) -> Connection:
        """A connected connection; waits as long as it takes."""
        # Celery calls this method without intervals, so kombu's defaults would hold.
        conn.ensure_connection = partial(
            conn.ensure_connection,
            interval_start=FIRST_WAIT_S,
            interval_step=FIRST_WAIT_S,
            interval_max=LONGEST_WAIT_S,
        )
        return super().ensure_connected(conn)

    def on_connection_error_after_connected(self, exc: Exception) -> None:
        """Dismantle a broken connection, or one over which Redis refuses to serve."""
        if isinstance(exc, ResponseError):
            log.warning("redis_refuses", error=str(exc))
            # Connecting works, so nothing else holds the next try back.
            time.sleep(LONGEST_WAIT_S)
        # kombu would put the messages back on the list, where this worker finds them first. In 5.7 it also does that
        # over the connection it has just dismantled, and the AttributeError ends the worker.
        for channel in self.connection.transport.channels:
            channel.do_restore = False
        with warnings.catch_warnings():
            # Celery's advice, each time, to cancel what runs. It shall go on.
            warnings.simplefilter("ignore", CPendingDeprecationWarning)
            super().on_connection_error_after_connected(exc)

    def on_send_event_buffered(self) -> None:
        """Told of an event, in any thread. Celery itself publishes in the loop's next turn, about once an event."""
        now = time.monotonic()
        # By time, not by a flag: Celery may cancel what is to come when a connection breaks.
        if now >= self._events_due:
            self._events_due = now + EVENTS_EVERY_S
            self.hub.call_soon(self.hub.call_later, EVENTS_EVERY_S, super().on_send_event_buffered)

    def call_soon_ack(self, p: Callable[..., None], *args: Any, **kwargs: Any) -> Any:
        """Have the main loop acknowledge or reject a message; `p` is a method of it."""
        return super().call_soon_ack(partial(_unless_gone, p), *args, **kwargs)


def _unless_gone(acknowledge: Any, *args: Any, **kwargs: Any) -> None:
    """In the main loop, which is also who closes channels."""
    if not acknowledge.__self__.channel.closed:
        acknowledge(*args, **kwargs)
