"""Whether Celery's consumer takes messages: a gate that closes it, and a watch that notices when it does not."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from kombu.transport.redis import QoS

#: A consumer that did not look for messages for this long is stalled, in seconds. Celery's main loop turns every 2 s
#: at least, even if all slots are taken.
STALLED_AFTER_S = 15.0


class Consumption:
    """State of this process's consumer. All methods may be called from any thread."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock` returns seconds."""
        self._clock = clock
        #: When the consumer last looked for messages; None before the worker is registered.
        self._looked_at: float | None = None
        #: Returns whether the worker takes messages now.
        self.is_open: Callable[[], bool] = lambda: True

    def looked(self) -> None:
        """Record that the consumer looked for messages of its queue. The bootstep calls it once to begin the watch."""
        self._looked_at = self._clock()

    @property
    def stalled(self) -> bool:
        """Whether the consumer has not looked for messages for a while. False before the watch has begun.

        Its queue may have been cancelled, its connection may be broken, or Celery's main loop may hang.
        """
        return self._looked_at is not None and self._clock() - self._looked_at > STALLED_AFTER_S


#: Celery makes one consumer for each process.
consumption = Consumption()


class GatedQoS(QoS):  # type: ignore[misc]
    """Takes no message while the gate is closed."""

    def can_consume(self) -> bool:
        """Whether kombu may send another BRPOP, or read the reply to one."""
        channel: Any = self.channel
        if channel.active_queues:  # the channel of the queue, and not that of the control commands
            consumption.looked()
        # The reply to a BRPOP that was sent must be read: it may contain a message, which would otherwise be in no
        # list until the gate opens.
        return bool(super().can_consume() and (channel._in_poll or consumption.is_open()))
