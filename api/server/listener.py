"""Listens on a socket and accepts connections. Without a file left for a connection it answers 503 and waits."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress

import structlog

from api.server.rare_log import RareLog

log = structlog.get_logger(__name__)

#: Connections that the kernel keeps until they are accepted.
BACKLOG = 2048
#: Connections that are accepted in one turn of the event loop.
BATCH = 64
#: How long no connection is accepted after the process ran out of files, in seconds.
PAUSE_S = 0.25
#: When the kernel begins to ask whether a silent client still exists, how often it asks, and how many times it asks
#: without an answer before it ends the connection. The times are in seconds.
KEEPALIVE_IDLE_S = 60
KEEPALIVE_INTERVAL_S = 10
KEEPALIVE_COUNT = 6

_OUT_OF_FILES = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_KEEPALIVE = {"TCP_KEEPIDLE": KEEPALIVE_IDLE_S, "TCP_KEEPINTVL": KEEPALIVE_INTERVAL_S, "TCP_KEEPCNT": KEEPALIVE_COUNT}


def open_sockets(host: str, port: int) -> Sequence[socket.socket]:
    """Bind a socket to each address of `host`; with port 0, all to the same free port. Raises OSError."""
    found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    sockets: list[socket.socket] = []
    failure: OSError | None = None
    for family, address in dict.fromkeys((family, address) for family, _, _, _, address in found):
        try:
            opened = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        except OSError as error:
            # A host name may have an address of a family that this machine does not support.
            failure = error
            continue
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        taken = sockets[0].getsockname()[1] if sockets else port
        try:
            opened.bind((address[0], taken, *address[2:]))
        except OSError as error:
            opened.close()
            failure = error
            if error.errno == errno.EADDRNOTAVAIL:
                continue
            for one in sockets:
                one.close()
            raise
        sockets.append(opened)
    if not sockets:
        assert failure is not None
        raise failure
    return sockets


class Listener:
    """Accepts connections on one socket."""

    def __init__(self, listening: socket.socket, make_protocol: Callable[[], asyncio.Protocol], busy: bytes) -> None:
        """`busy`: the answer to a connection for which there is no file."""
        self._socket = listening
        self._make_protocol = make_protocol
        self._busy = busy
        self._loop = asyncio.get_running_loop()
        self._resume: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[object]] = set()
        #: A file that is closed when there is no other left, so that one connection can be accepted and answered.
        self._spare: int | None = None
        self._out_of_files = RareLog("out_of_files")

    def start(self) -> None:
        """Listen. Raises OSError."""
        self._socket.setblocking(False)
        self._socket.listen(BACKLOG)
        self._open_spare()
        self._loop.add_reader(self._socket.fileno(), self._accept)

    def close(self) -> None:
        """Close the socket. Connections stay open."""
        if self._resume is not None:
            self._resume.cancel()
        self._loop.remove_reader(self._socket.fileno())
        self._socket.close()
        self._close_spare()

    def _accept(self) -> None:
        for _ in range(BATCH):
            try:
                accepted, _ = self._socket.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                if error.errno not in _OUT_OF_FILES:
                    raise
                self._pause(error)
                return
            accepted.setblocking(False)
            if accepted.family in (socket.AF_INET, socket.AF_INET6):
                _set_options(accepted)
            task = self._loop.create_task(self._connect(accepted))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _connect(self, accepted: socket.socket) -> None:
        try:
            await self._loop.connect_accepted_socket(self._make_protocol, accepted)
        except OSError:
            # The client has gone already.
            accepted.close()

    def _pause(self, error: OSError) -> None:
        """Answer one client, and accept no others for a while: they wait in the kernel."""
        self._out_of_files.warn(error=error.strerror, advice="raise the limit of open files (ulimit -n)")
        self._refuse_one()
        self._loop.remove_reader(self._socket.fileno())
        self._resume = self._loop.call_later(PAUSE_S, self._continue)

    def _continue(self) -> None:
        self._open_spare()
        self._loop.add_reader(self._socket.fileno(), self._accept)

    def _refuse_one(self) -> None:
        self._close_spare()
        with suppress(OSError):
            accepted, _ = self._socket.accept()
            with accepted:
                accepted.setblocking(False)
                accepted.send(self._busy)
                accepted.shutdown(socket.SHUT_WR)
                # If bytes were left unread, the kernel would reset the connection, and the answer might be lost.
                accepted.recv(65_536)
        self._open_spare()

    def _open_spare(self) -> None:
        if self._spare is None:
            with suppress(OSError):
                self._spare = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)

    def _close_spare(self) -> None:
        if self._spare is not None:
            os.close(self._spare)
            self._spare = None


def _set_options(accepted: socket.socket) -> None:
    """Send each part of an answer at once, and let the kernel notice a client whose machine or network is gone."""
    # The client may have gone already.
    with suppress(OSError):
        accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        accepted.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in _KEEPALIVE.items():
            # macOS has no TCP_KEEPIDLE.
            if hasattr(socket, name):
                accepted.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
