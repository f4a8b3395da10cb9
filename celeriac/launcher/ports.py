"""Checks of the addresses to listen on, before anything is started."""

from __future__ import annotations

import errno
import ipaddress
import socket

from celeriac.errors import CeleriacError


class PortError(CeleriacError):
    """A server cannot listen on an address. The message says why, and what to do."""


def check_port(host: str, port: int, *, option: str = "--port") -> None:
    """Raise PortError if a server cannot listen on the port. `option`: the option that selects another port."""
    failures = []
    addresses = _addresses(host, port)
    for family, address in addresses:
        try:
            _bind(family, address)
        except OSError as error:
            failures.append(error)
            if error.errno in (errno.EADDRINUSE, errno.EACCES):
                break
    else:
        # A host name may have an address of a family that this machine does not support.
        if len(failures) < len(addresses):
            return
    raise PortError(_message(failures[-1], host, port, option)) from failures[-1]


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server that listens on `host`. Raises PortError for an unknown host."""
    return all(ipaddress.ip_address(address[0]).is_loopback for _, address in _addresses(host, 0))


def url_of(host: str, port: int) -> str:
    """The URL for clients on this machine of a server that listens on `host`."""
    shown = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(host, host)
    return f"http://[{shown}]:{port}" if ":" in shown else f"http://{shown}:{port}"


def _addresses(host: str, port: int) -> list[tuple[socket.AddressFamily, tuple[str, int]]]:
    try:
        found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (socket.gaierror, UnicodeError) as error:
        raise PortError(
            f"{host!r} is not an address of this machine. Use --host 127.0.0.1, or 0.0.0.0 for all."
        ) from error
    return [(family, (str(address[0]), port)) for family, _, _, _, address in found]


def _bind(family: socket.AddressFamily, address: tuple[str, int]) -> None:
    """Bind a socket to the address and close it. Raises OSError."""
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        # As the server does: connections of an earlier server in TIME_WAIT do not block the port.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        probe.bind(address)


def _message(error: OSError, host: str, port: int, option: str) -> str:
    match error.errno:
        case errno.EADDRINUSE:
            return (
                f"Port {port} on {host} is in use, perhaps by another `celeriac serve`. Stop that program, or choose "
                f"another port with {option}."
            )
        case errno.EACCES:
            return f"Port {port} needs administrator rights. Choose one above 1023 with {option}."
        case errno.EADDRNOTAVAIL:
            return f"{host} is not an address of this machine. Use --host 127.0.0.1, or 0.0.0.0 for all."
        case _:
            return f"Port {port} on {host} cannot be used: {error.strerror}."
