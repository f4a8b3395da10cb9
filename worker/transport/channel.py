"""kombu's Redis transport, with clients that are made once and not for each command."""

from __future__ import annotations

from typing import Any

import redis
from kombu.transport.redis import Channel, Transport


class ReusingChannel(Channel):  # type: ignore[misc]
    """Keeps a client for each pool: kombu makes one for every publish, ack and delivery, which is a seventh of a short
    job's work in this process. A client holds nothing but its pool, and may be used by several threads."""

    _client_of_pool: redis.Redis | None = None

    def _create_client(self, asynchronous: bool = False) -> Any:
        if asynchronous:  # kept by kombu
            return super()._create_client(asynchronous=True)
        client = self._client_of_pool
        if client is None or client.connection_pool is not self.pool:
            client = self._client_of_pool = super()._create_client()
        return client


def install_reuse() -> None:
    """Have every connection of this process use such channels."""
    Transport.Channel = ReusingChannel
