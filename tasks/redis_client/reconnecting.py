"""Connections for threads that are replaced after Redis said that it is a replica now.

After a failover the name of the server leads to the new primary, but open connections still lead to the old one.
"""

from __future__ import annotations

from typing import Any

from redis.connection import AbstractConnection, Connection, SSLConnection, UnixDomainSocketConnection
from redis.exceptions import ResponseError

from tasks.redis_client.errors import is_demotion


class _Reconnecting(AbstractConnection):
    def read_response(self, *args: Any, **options: Any) -> Any:
        """Read a reply."""
        try:
            return super().read_response(*args, **options)
        except ResponseError as error:
            if is_demotion(error):
                # The pool closes the connection when it gets it back.
                self.mark_for_reconnect()  # type: ignore[no-untyped-call]
            raise


class ReconnectingTcp(_Reconnecting, Connection):
    """Over TCP."""


class ReconnectingTls(_Reconnecting, SSLConnection):
    """Over TLS."""


class ReconnectingUnix(_Reconnecting, UnixDomainSocketConnection):
    """Over a Unix socket."""


#: The class to use instead of each of redis-py's.
RECONNECTING: dict[type[Any], type[Any]] = {
    Connection: ReconnectingTcp,
    SSLConnection: ReconnectingTls,
    UnixDomainSocketConnection: ReconnectingUnix,
}
