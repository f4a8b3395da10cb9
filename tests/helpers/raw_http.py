"""HTTP over plain sockets, for clients that do what no HTTP library does."""

from __future__ import annotations

import json
import socket
from urllib.parse import urlsplit

#: Longest wait for bytes, in seconds.
DEADLINE_S = 30.0


def connect(url: str) -> socket.socket:
    """A connection to the server."""
    parts = urlsplit(url)
    return socket.create_connection((parts.hostname, parts.port), timeout=DEADLINE_S)


def post(path: str, body: object, *headers: str) -> bytes:
    """A complete request with a JSON body."""
    content = json.dumps(body).encode()
    lines = [
        f"POST {path} HTTP/1.1",
        "Host: localhost",
        "Content-Type: application/json",
        f"Content-Length: {len(content)}",
    ]
    return "\r\n".join([*lines, *headers, "", ""]).encode() + content


def get(path: str, *headers: str) -> bytes:
    """A complete request without a body."""
    return "\r\n".join([f"GET {path} HTTP/1.1", "Host: localhost", *headers, "", ""]).encode()


def read_all(connection: socket.socket) -> bytes:
    """Everything that the server sends until it closes the connection."""
    received = bytearray()
    while chunk := connection.recv(65_536):
        received += chunk
    return bytes(received)


def read_answer(connection: socket.socket) -> bytes:
    """One response with a Content-Length, and nothing after it."""
    received = bytearray()
    while b"\r\n\r\n" not in received:
        chunk = connection.recv(65_536)
        assert chunk, bytes(received)
        received += chunk
    head, _, body = bytes(received).partition(b"\r\n\r\n")
    lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
    missing = int(lengths[0].partition(b":")[2]) - len(body)
    while missing > 0:
        chunk = connection.recv(missing)
        assert chunk, bytes(received)
        received += chunk
        missing -= len(chunk)
    return bytes(received)


def status_of(answer: bytes) -> int:
    """The status of a response."""
    version, status, *_ = answer.split(b" ", 2)
    assert version == b"HTTP/1.1", answer[:40]
    return int(status)


def is_closed(connection: socket.socket) -> bool:
    """Whether the server has closed the connection without another byte."""
    connection.settimeout(0.01)
    try:
        return connection.recv(1) == b""
    except TimeoutError:
        return False
    except ConnectionResetError:
        return True
    finally:
        connection.settimeout(DEADLINE_S)
