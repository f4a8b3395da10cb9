"""A server on a real socket that sends exactly the bytes, pieces and endings that a test wants."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

#: Head of a streaming response with chunked encoding.
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nTransfer-Encoding: chunked\r\n\r\n"
#: Regular end of a response with chunked encoding.
END = b"0\r\n\r\n"
#: Longest wait for the other side, in seconds.
DEADLINE_S = 30.0


def chunk(data: bytes) -> bytes:
    """One chunk of a streaming response."""
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


@dataclass
class Peer:
    """One connection of a client."""

    socket: socket.socket
    #: The request as text.
    request: str

    def send(self, data: bytes) -> None:
        """Send bytes."""
        self.socket.sendall(data)

    def reset(self) -> None:
        """Reset the connection, as the kernel does for a killed process."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()

    def closed(self) -> bool:
        """Wait until the client closes its side. False if it does not in time."""
        try:
            return self.socket.recv(1) == b""
        except ConnectionResetError:
            return True
        except TimeoutError:
            return False


@dataclass
class StreamingServer:
    """A running server. The first connection runs the first script, and so on."""

    url: str
    #: Exceptions of the scripts.
    errors: list[BaseException] = field(default_factory=list)


@contextmanager
def streaming_server(*scripts: Callable[[Peer], object]) -> Iterator[StreamingServer]:
    """Run a server that accepts one connection per script and refuses more. Fails if a script fails."""
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(DEADLINE_S)
    server = StreamingServer(f"http://127.0.0.1:{listener.getsockname()[1]}")
    thread = threading.Thread(target=_serve, args=(listener, server, scripts), name="streaming-server")
    thread.start()
    try:
        yield server
    finally:
        thread.join()
    assert not server.errors, server.errors


def _serve(listener: socket.socket, server: StreamingServer, scripts: tuple[Callable[[Peer], object], ...]) -> None:
    try:
        with listener:
            for script in scripts:
                connection, _ = listener.accept()
                with connection:
                    connection.settimeout(DEADLINE_S)
                    request = b""
                    while b"\r\n\r\n" not in request:
                        request += connection.recv(65536)
                    script(Peer(connection, request.decode()))
    except (OSError, AssertionError) as error:
        server.errors.append(error)
