"""Celery's consumer, with waits between two tries to reach Redis that suit a short outage."""

from __future__ import annotations

from functools import partial

from celery.worker.consumer import Consumer
from kombu import Connection

#: Seconds between two tries: the first wait, and the longest. Celery's own grow to 30.
FIRST_WAIT_S = 0.2
LONGEST_WAIT_S = 1.0


class EagerConsumer(Consumer):
    """Finds a returned Redis within about a second."""

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
