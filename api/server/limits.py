"""What one connection may do, and how many there may be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from api.server import open_files
from tasks.settings import Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionLimits:
    """The limits of one server. All times are in seconds."""

    #: Most connections. Above it, connections that send nothing are closed, the oldest first.
    max_connections: int
    #: How long a client may take to send the headers of a request, and then again to send its body.
    request_timeout_s: float
    #: How long a client may read nothing while an answer waits for it.
    stall_s: float = 60.0
    #: Connections above the limit that are answered: health checks as usual, everything else with 503.
    reserve: int = 64
    #: How long a client above the limit may take to send its request.
    reserve_timeout_s: float = 5.0
    #: How long the server reads on after it refused a connection. If it closed at once, the client might not receive
    #: the refusal.
    linger_s: float = 2.0

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """The limits of the settings, as far as the process may open files."""
        return cls(
            max_connections=open_files.connections_allowed(settings.max_connections),
            request_timeout_s=settings.request_timeout_s,
        )
