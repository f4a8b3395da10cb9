"""Finds out whether a Redis that cannot be reached uses TLS where the URL has none, or the reverse."""

from __future__ import annotations

import socket
import ssl
from typing import Any
from urllib.parse import urlsplit

from tasks.redis_client.connections import parse, redacted

#: Longest time for each step, in seconds. A server that does not answer by then counts as away.
PROBE_S = 1.0


def tls_mismatch(url: str) -> str | None:
    """One sentence if the server uses TLS and the URL does not, or the reverse; else None."""
    options, address = parse(url), redacted(url)
    scheme = urlsplit(url).scheme
    if scheme == "redis" and _accepts_tls(options):
        return f"Redis at {address} expects TLS: write rediss:// instead of redis:// in CELERIAC_REDIS_URL."
    if scheme == "rediss" and _speaks_plainly(options):
        return f"Redis at {address} does not use TLS: write redis:// instead of rediss:// in CELERIAC_REDIS_URL."
    return None


def _connect(options: dict[str, Any]) -> socket.socket:
    return socket.create_connection((options.get("host", "localhost"), options.get("port", 6379)), PROBE_S)


def _accepts_tls(options: dict[str, Any]) -> bool:
    # Only to learn whether the server speaks TLS. No secret is sent.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    try:
        with _connect(options) as plain, context.wrap_socket(plain):
            return True
    except OSError:
        return False


def _speaks_plainly(options: dict[str, Any]) -> bool:
    try:
        with _connect(options) as plain:
            plain.sendall(b"PING\r\n")
            # An error, for example about a missing password, is a reply of Redis as well.
            return plain.recv(1) in (b"+", b"-")
    except OSError:
        return False
