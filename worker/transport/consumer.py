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
from kombu.common import ignore_errors
from redis.exceptions import ResponseError

from tasks.redis_client.errors import describe

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
    #: Functions that the main loop called in each turn before the present connection was made; None before the first.
    _own_callbacks: set[Any] | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        #: Connections that were opened since the last error.
        self._opened: list[Connection] = []

    def connect(self) -> Connection:
        """The connection for messages."""
        if self.hub is not None and self._own_callbacks is None:
            self._own_callbacks = set(self.hub.on_tick)
        return super().connect()

    def ensure_connected(self, conn: Connection) -> Connection:
        """Connect `conn`, and repeat that for as long as it takes."""
        self._opened.append(conn)
        # Celery calls this method without intervals, so kombu's defaults would be used.
        conn.ensure_connection = partial(
            conn.ensure_connection,
            interval_start=FIRST_WAIT_S,
            interval_step=FIRST_WAIT_S,
            interval_max=LONGEST_WAIT_S,
        )
        return super().ensure_connected(conn)

    def on_connection_error_before_connected(self, exc: Exception) -> None:
        """Close what was opened: Celery forgets a connection on which Redis refused the first command."""
        if not isinstance(exc, ResponseError):
            super().on_connection_error_before_connected(exc)
        self._abandon(exc)

    def on_connection_error_after_connected(self, exc: Exception) -> None:
        """Close a connection that is broken, or on which Redis refuses commands."""
        self._forget_channels()
        with warnings.catch_warnings():
            # Celery warns each time that running tasks should be cancelled. Here they must continue.
            warnings.simplefilter("ignore", CPendingDeprecationWarning)
            super().on_connection_error_after_connected(exc)
        self._abandon(exc)

    def _abandon(self, exc: Exception) -> None:
        """Close all connections, and wait if Redis refuses commands. Celery then opens new ones."""
        self._forget_channels()
        opened, self._opened = self._opened, []
        for connection in opened:
            ignore_errors(connection, connection.close)
        # kombu adds a function for each connection, and removes none.
        if self._own_callbacks is not None:
            self.hub.on_tick.intersection_update(self._own_callbacks)
        if isinstance(exc, ResponseError):
            log.warning("redis_refuses", error=describe(exc))
            # Connecting works, so there is no other wait before the next attempt.
            time.sleep(LONGEST_WAIT_S)

    def _forget_channels(self) -> None:
        """Make the end of all channels a matter of this process alone: closing them sends nothing to Redis."""
        for connection in self._opened:
            for channel in connection.transport.channels:
                # kombu would requeue the messages, and this worker would take them again. In kombu 5.7 it also uses the
                # connection that it has just closed for that, and the AttributeError ends the worker.
                channel.do_restore = False
                # An error while a queue is deleted would leave this channel and all others open. The queue of control
                # commands, the only one, is used again at once.
                channel.auto_delete_queues.clear()

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


def _unless_closed(acknowledge: Any, logger: Any, errors: tuple[type[Exception], ...], **kwargs: Any) -> None:
    """Acknowledge unless the channel is closed. `errors` are those of a broken connection.

    Runs in the main loop, the only thread that closes channels. A message that could not be acknowledged is
    delivered again after the visibility timeout, which does no harm.
    """
    channel = acknowledge.__self__.channel
    if channel.closed or channel.refused:
        return
    try:
        # Without errors to catch, kombu does not log them: it would log a critical error with a traceback.
        acknowledge(logger, (), **kwargs)
    except ResponseError:
        # The error makes Celery replace the connection. Until then, other messages would only repeat the error.
        channel.refused = True
        raise
    except errors as error:
        # The main loop reads from the same server, so it finds the end of its connection by itself.
        log.info("message_not_acknowledged", error=str(error))
