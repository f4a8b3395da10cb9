"""kombu's Redis transport with one Redis client per pool, where kombu makes one for each command.

Select it with `app.amqp_cls = ReusingAMQP`. Celery's setting `broker_transport` would not work: kombu ignores it for
`redis+socket://` URLs.
"""

from __future__ import annotations

from typing import Any

import redis
import structlog
from celery.app.amqp import AMQP
from kombu import Connection
from kombu.transport.redis import Channel, Transport
from redis.exceptions import ResponseError

from tasks.redis_errors import describe

log = structlog.get_logger(__name__)


class TolerantQoS(Channel.QoS):  # type: ignore[misc]
    """Restores overdue messages only if Redis allows it."""

    def restore_visible(self, *args: Any, **kwargs: Any) -> None:
        """Put messages past the visibility timeout back. That only tidies up, so an error of Redis does no harm."""
        try:
            super().restore_visible(*args, **kwargs)
        except ResponseError as error:
            log.debug("messages_not_restored", error=describe(error))


class ReusingChannel(Channel):  # type: ignore[misc]
    """Keeps the client of its pool.

    kombu makes a client for every publish, acknowledgement and delivery. That is a seventh of the work of a short job
    in this process. A client has no state but its pool, and several threads may use it.
    """

    QoS = TolerantQoS

    #: Whether Redis has refused an acknowledgement.
    refused = False

    _client_of_pool: redis.Redis | None = None

    def maybe_refresh_binding_expiry(self) -> None:
        """Keep kombu's tables of control commands. kombu would log a traceback each second while Redis refuses it."""
        try:
            super().maybe_refresh_binding_expiry()
        except ResponseError as error:
            log.debug("bindings_not_refreshed", error=describe(error))

    def _create_client(self, asynchronous: bool = False) -> Any:
        if asynchronous:  # kombu keeps this one itself
            return super()._create_client(asynchronous=True)
        client = self._client_of_pool
        if client is None or client.connection_pool is not self.pool:
            client = self._client_of_pool = super()._create_client()
        return client


class ReusingTransport(Transport):  # type: ignore[misc]
    """Opens such channels."""

    Channel = ReusingChannel


class ReusingConnection(Connection):  # type: ignore[misc]
    """Uses this transport for every URL."""

    def get_transport_cls(self) -> type[ReusingTransport]:
        return ReusingTransport


class ReusingAMQP(AMQP):  # type: ignore[misc]
    """Makes Celery open such connections."""

    Connection = ReusingConnection
