"""Runs the API on uvicorn, with our connections and our accept loop."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from contextlib import suppress
from socket import socket

import structlog
import uvicorn
from uvicorn.supervisors import ChangeReload

from api.server import refusals
from api.server.connection import Connection
from api.server.limits import ConnectionLimits
from api.server.listener import Listener, open_sockets
from tasks.logs import flush_logs

log = structlog.get_logger(__name__)

#: How long running requests may take at shutdown, in seconds. Their jobs continue in any case.
GRACE_S = 5
#: Exit code if the server cannot start.
CANNOT_START = 3


class Server(uvicorn.Server):
    """uvicorn's server. It accepts connections in our loop, and only on the sockets that it is given."""

    def __init__(self, config: uvicorn.Config, limits: ConnectionLimits | None = None) -> None:
        """`limits` None: those of the settings."""
        super().__init__(config)
        self._limits = limits
        self._listeners: list[Listener] = []
        #: Whether connections are accepted.
        self.listening = False

    async def startup(self, sockets: list[socket] | None = None) -> None:
        """Start the application, then listen."""
        await super().startup(sockets=[])
        busy = refusals.as_bytes(refusals.too_many_connections())
        self._listeners = [Listener(one, self._connection, busy) for one in sockets or []]
        for listener in self._listeners:
            listener.start()
        self.listening = True
        for one in sockets or []:
            host, port, *_ = one.getsockname()
            log.info("listening", host=host, port=port)

    async def shutdown(self, sockets: list[socket] | None = None) -> None:
        """Accept no more connections, end those that are open, and stop the application."""
        log.info("stopping", connections=len(self.server_state.connections))
        for listener in self._listeners:
            listener.close()
        await super().shutdown(sockets=[])
        # uvicorn now sends itself the signal that has stopped it, and that ends the process at once.
        await asyncio.to_thread(flush_logs)

    def _connection(self) -> asyncio.Protocol:
        return Connection(self.config, self.server_state, self.lifespan.state, limits=self._limits)


def configuration(app: object, *, keep_alive_s: int, reload_dirs: Sequence[str] = ()) -> uvicorn.Config:
    """How uvicorn runs `app`: as one process, also where WEB_CONCURRENCY is set, and without its own logs of requests.

    With `reload_dirs` it starts again when the code in these folders changes; `app` is then a name to import.
    """
    return uvicorn.Config(
        app,  # type: ignore[arg-type]
        http=Connection,
        ws="none",
        workers=1,
        reload=bool(reload_dirs),
        reload_dirs=[*reload_dirs] or None,
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=GRACE_S,
        timeout_keep_alive=keep_alive_s,
    )


def run(app: str, host: str, port: int, *, keep_alive_s: int, reload_dirs: Sequence[str] = ()) -> None:
    """Serve `app`, the name of an application, until a signal. Raises OSError if `host` and `port` cannot be used."""
    config = configuration(app, keep_alive_s=keep_alive_s, reload_dirs=reload_dirs)
    sockets = [*open_sockets(host, port)]
    server = Server(config)
    if config.should_reload:
        for one in sockets:
            one.set_inheritable(True)
        ChangeReload(config, target=server.run, sockets=sockets).run()
    else:
        # uvicorn sends itself the signal again that has stopped it.
        with suppress(KeyboardInterrupt):
            server.run(sockets=sockets)
        if not server.started:
            sys.exit(CANNOT_START)
