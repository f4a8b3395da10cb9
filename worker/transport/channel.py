"""kombu's Redis transport with one Redis client per pool, where kombu makes one for each command.

Select it with `app.amqp_cls = ReusingAMQP`. Celery's setting `broker_transport` would not work: kombu ignores it for
`redis+socket://` URLs.
"""

from __future__ import annotations

import re
from typing import Any

import redis
from celery.app.amqp import AMQP
from kombu import Connection
from kombu.transport.redis import Channel, Transport

from worker.transport.consumption import GatedQoS

#: User and password in a URL, whose special characters are written with %.
_LOGIN = re.compile(r"(?<=://)[^/?#]*@")


class ReusingChannel(Channel):  # type: ignore[misc]
    """Keeps the client of its pool.

    kombu makes a client for every publish, acknowledgement and delivery. That is a seventh of the work of a short job
    in this process. A client has no state but its pool, and several threads may use it.
    """

    QoS = GatedQoS
    _client_of_pool: redis.Redis | None = None

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
    """Uses this transport for every URL. What it tells about itself contains no password of a Unix socket's URL."""

    def info(self) -> dict[str, Any]:
        """The parts of the connection, for `celery inspect stats` and Flower. Celery removes the password itself.

        For a Unix socket, the host name is a whole URL.
        """
        info: dict[str, Any] = super().info()
        info["hostname"] = _LOGIN.sub("", info["hostname"])
        info["alternates"] = [_LOGIN.sub("", url) for url in info["alternates"]]
        return info

    def get_transport_cls(self) -> type[ReusingTransport]:
        return ReusingTransport


class ReusingAMQP(AMQP):  # type: ignore[misc]
    """Makes Celery open such connections."""

    Connection = ReusingConnection
