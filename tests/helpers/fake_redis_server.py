"""A TCP server that answers each command with a given reply, or never."""

from __future__ import annotations

import socketserver
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Reply = Callable[[list[str]], bytes | None]


def silent(command: list[str]) -> None:
    """Never answer, as a server that hangs."""


@contextmanager
def fake_redis_server(reply: Reply) -> Iterator[tuple[str, Server]]:
    """Run the server. Yields its URL and the server. `reply` gets a command, and returns None to send no answer."""
    with Server(reply) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), name="fake-redis")
        thread.start()
        try:
            yield f"redis://127.0.0.1:{server.server_address[1]}/0", server
        finally:
            server.shutdown()
            thread.join()


class Server(socketserver.ThreadingTCPServer):
    """Counts its connections and commands."""

    daemon_threads = True
    #: As Redis has it. Connections that exceed it are delayed.
    request_queue_size = 511

    def __init__(self, reply: Reply) -> None:
        super().__init__(("127.0.0.1", 0), _Connection)
        self.reply = reply
        self.connections = 0
        self.commands: list[str] = []


class _Connection(socketserver.StreamRequestHandler):
    server: Server

    def handle(self) -> None:
        self.server.connections += 1
        while header := self.rfile.readline():
            command = [self._argument() for _ in range(int(header[1:]))]
            self.server.commands.append(command[0])
            if (answer := self.server.reply(command)) is not None:
                self.wfile.write(answer)

    def _argument(self) -> str:
        length = int(self.rfile.readline()[1:])
        return self.rfile.read(length + 2)[:-2].decode()
