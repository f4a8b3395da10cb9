"""kombu's Redis transport, with a check of everything that is taken from Celery's list.

It also keeps one Redis client per pool, where kombu makes one for each command.

Select it with `app.amqp_cls = ReusingAMQP`. Celery's setting `broker_transport` would not work: kombu ignores it for
`redis+socket://` URLs.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from functools import cache
from typing import Any

import redis
import structlog
from celery.app.amqp import AMQP
from kombu import Connection
from kombu.transport.redis import Channel, Transport
from redis.exceptions import ResponseError

from tasks.celery_app import make_app
from tasks.redis_client.errors import describe
from tasks.settings import settings
from worker.transport.consumption import GatedQoS
from worker.transport.incoming import Incoming, JobMessage, NoMessageError, parse, read

log = structlog.get_logger(__name__)

#: User and password in a URL, whose special characters are written with %.
_LOGIN = re.compile(r"(?<=://)[^/?#]*@")


class CheckedQoS(GatedQoS):
    """Puts messages that were not acknowledged back on their lists, and drops what is no message."""

    def restore_visible(self, *args: Any, **kwargs: Any) -> None:
        """Put messages past the visibility timeout back. That only tidies up, so an error of Redis does no harm."""
        try:
            super().restore_visible(*args, **kwargs)
        except ResponseError as error:
            log.debug("messages_not_restored", error=describe(error))

    def restore_by_tag(self, tag: bytes, client: redis.Redis | None = None, leftmost: bool = False) -> None:
        """Put one message back. kombu itself would fail at the first damaged one, and try it again forever."""
        with self.channel.conn_or_acquire(client) as connected:
            raw = connected.hget(self.unacked_key, tag)
            try:
                if raw is not None:
                    check_unacked(raw, self.channel.active_queues)
            except NoMessageError as error:
                log.error("message_dropped", where=self.unacked_key, bytes=len(raw), reason=str(error))
                self._remove_from_indices(tag).execute()
                return
            super().restore_by_tag(tag, connected, leftmost)


class ReusingChannel(Channel):  # type: ignore[misc]
    """Keeps the client of its pool, and drops what is no message of a job.

    kombu makes a client for every publish, acknowledgement and delivery. That is a seventh of the work of a short job
    in this process. A client has no state but its pool, and several threads may use it.
    """

    QoS = CheckedQoS

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
            client = super()._create_client(asynchronous=True)
            # kombu takes an empty reply for a BRPOP that timed out.
            client.set_response_callback("BRPOP", _checked)
            return client
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


def check_unacked(raw: bytes, queues: Sequence[str]) -> None:
    """Check an entry of kombu's hash of messages that were not acknowledged. Raises NoMessageError.

    Other programs may keep their messages in the same hash. They are checked only as far as kombu needs it.
    """
    try:
        entry = json.loads(raw)
    except (ValueError, RecursionError):
        raise NoMessageError("not JSON") from None
    match entry:
        case [{"headers": dict(), "properties": {"delivery_info": dict()}} as message, str(), str(routing_key)]:
            if routing_key in queues:
                read(message)
        case _:
            raise NoMessageError("not a message with its exchange and its routing key")


def _checked(reply: Sequence[bytes] | None, **_: Any) -> tuple[bytes, bytes] | None:
    """The reply of BRPOP with a message that Celery can use; None if there is no message."""
    if not reply:
        return None
    queue, raw = reply
    try:
        message = parse(raw)
    except NoMessageError as error:
        log.error("message_dropped", where=queue.decode(errors="replace"), bytes=len(raw), reason=str(error))
        return None
    return queue, _render(queue.decode(), message)


def _render(queue: str, message: JobMessage) -> bytes:
    return _incoming(queue).render(message).encode()


@cache
def _incoming(queue: str) -> Incoming:
    return Incoming(make_app(settings()), queue)
