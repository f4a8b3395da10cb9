"""Addresses to listen on, looked at before anything is started."""

from __future__ import annotations

import errno
import ipaddress
import socket

from celeriac.errors import CeleriacError


class PortError(CeleriacError):
    """An address cannot be listened on. The message says why, and what to do."""


def check_port(host: str, port: int, *, option: str = "--port") -> None:
    """Raises PortError where nothing can listen on the port; `option` is what would choose another."""
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
        # A name may stand for an address of a family that this machine does not have.
        if len(failures) < len(addresses):
            return
    raise PortError(_why(failures[-1], host, port, option)) from failures[-1]


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server that listens on `host`. Raises PortError for an unknown name."""
    return all(ipaddress.ip_address(address[0]).is_loopback for _, address in _addresses(host, 0))


def url_of(host: str, port: int) -> str:
    """Where a client on this machine finds a server that listens on `host`."""
    shown = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(host, host)
    return f"http://[{shown}]:{port}" if ":" in shown else f"http://{shown}:{port}"


def _addresses(host: str, port: int) -> list[tuple[socket.AddressFamily, tuple[str, int]]]:
    try:
        found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (socket.gaierror, UnicodeError) as error:
        raise PortError(f"{host!r} is no address of this machine. Use --host 127.0.0.1, or 0.0.0.0 for all.") from error
    return [(family, (str(address[0]), port)) for family, _, _, _, address in found]


def _bind(family: socket.AddressFamily, address: tuple[str, int]) -> None:
    """Listen and stop again. Raises OSError."""
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        # As the server does it: connections of an earlier one that are still fading away are no obstacle.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        probe.bind(address)


def _why(error: OSError, host: str, port: int, option: str) -> str:
    match error.errno:
        case errno.EADDRINUSE:
            return (
                f"Port {port} on {host} is in use, perhaps by another `celeriac serve`. End that program, or choose "
                f"another port with {option}."
            )
        case errno.EACCES:
            return f"Port {port} is reserved for the administrator. Choose one above 1023 with {option}."
        case errno.EADDRNOTAVAIL:
            return f"{host} is no address of this machine. Use --host 127.0.0.1, or 0.0.0.0 for all."
        case _:
            return f"Port {port} on {host} cannot be used: {error.strerror}."
