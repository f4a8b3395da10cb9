"""Checks the `Host` of each request, so that a name of another site that leads to this machine is not answered.

A web page can let its own name resolve to this machine (DNS rebinding). For the browser the page and this server then
have the same origin, and the page could read every job. The browser sends the page's name as `Host`. An address cannot
be rebound, so a request that names one is answered.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Iterable
from pathlib import Path

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from api.http.error_handlers import error_response
from api.http.problems import ApiError, Code, presentable

#: Ends of names that cannot be registered on the Internet (RFC 6761, RFC 6762, RFC 8375, and ICANN's `internal`).
PRIVATE_DOMAINS = (".localhost", ".local", ".internal", ".home.arpa")

_HOST = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([A-Za-z0-9._-]{1,253}))(?::[0-9]{0,5})?")
_RESOLVER_FILE = Path("/etc/resolv.conf")
#: The entries of the resolver's file that name the domains of this machine.
_SEARCH = ("search", "domain")


class HostCheck:
    """Answers 421 to a request for a host that this server does not know."""

    def __init__(self, app: ASGIApp, allowed: Iterable[str]) -> None:
        """`allowed` are names, `*.` with a domain for all names in it, or `*` for any host."""
        self._app = app
        names = {name.lower().rstrip(".") for name in (*allowed, *names_of_this_machine())}
        self._any = "*" in names
        self._names = names
        self._domains = tuple(name[1:] for name in names if name.startswith("*."))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] == "http" and not self._any:
            given = Headers(scope=scope).getlist("host")
            # Only clients that are no browsers send none.
            if given and not (len(given) == 1 and self._allows(given[0], scope)):
                error = ApiError(
                    Code.UNKNOWN_HOST,
                    f"This server does not know the host {presentable(given[0])!r}. If it is a name of this server, "
                    "add it to CELERIAC_ALLOWED_HOSTS, which is a JSON list.",
                )
                await error_response(scope, error)(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _allows(self, host: str, scope: Scope) -> bool:
        match = _HOST.fullmatch(host)
        if match is None:
            return False
        if match[1] is not None:
            return address(match[1]) is not None
        name = match[2].lower().rstrip(".")
        if name in self._names or name.endswith((".localhost", *self._domains)) or address(name) is not None:
            return True
        # In a private network, such as that of containers, a server has names that it cannot know. No page on the
        # Internet has such a name, and one in the same network could call this server directly.
        return ("." not in name or name.endswith(PRIVATE_DOMAINS)) and not _over_loopback(scope)


def names_of_this_machine() -> set[str]:
    """The names by which other machines of the network call this one, as far as they are known without asking DNS."""
    host = socket.gethostname().lower()
    short = host.partition(".")[0]
    try:
        lines = _RESOLVER_FILE.read_text("utf-8", "replace").splitlines()
    except OSError:
        lines = []
    domains = {domain for line in lines for word, *rest in [line.split() or [""]] for domain in rest if word in _SEARCH}
    return {"localhost", host, short, *(f"{short}.{domain.lower().strip('.')}" for domain in domains)} - {""}


def address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """The IP address that `text` is, if it is one."""
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None


def _over_loopback(scope: Scope) -> bool:
    """Whether the request came to a loopback address of this machine."""
    server = scope.get("server")
    local = None if server is None else address(server[0])
    mapped = getattr(local, "ipv4_mapped", None)
    return local is not None and (mapped or local).is_loopback
