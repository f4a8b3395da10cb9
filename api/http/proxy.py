"""The path under which a proxy serves the API: the setting, or the `X-Forwarded-Prefix` of a trusted proxy."""

from __future__ import annotations

import ipaddress

import structlog
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from api.http.hosts import address
from api.http.problems import presentable
from tasks.settings import is_root_path

log = structlog.get_logger(__name__)

#: Longest prefix that a proxy may send, in characters.
MAX_PREFIX = 256


class TrustedProxies:
    """The proxies whose `X-Forwarded-*` headers are believed. The same list decides in uvicorn."""

    def __init__(self, listed: str) -> None:
        """`listed` are addresses and networks with commas between them, or `*` for all: `FORWARDED_ALLOW_IPS`."""
        self._all = listed.strip() == "*"
        self._networks: list[ipaddress.IPv4Network | ipaddress.IPv6Network] = []
        for part in () if self._all else listed.split(","):
            try:
                self._networks.append(ipaddress.ip_network(part.strip()))
            except ValueError:
                continue  # A name, which is no client's address.

    def __contains__(self, client: tuple[str, int] | None) -> bool:
        """Whether a request with this `client` in its scope came from a trusted proxy."""
        if self._all:
            return True
        if client is None:
            return False
        # uvicorn has replaced the address of a trusted proxy by that in `X-Forwarded-For`, whose port is not known. No
        # connection comes from port 0.
        if client[1] == 0:
            return True
        found = address(client[0])
        return found is not None and any(found in network for network in self._networks)


class RootPath:
    """Names the path under which a proxy serves the API in each request, as `root_path` of ASGI.

    The path of the request may begin with it or not.
    """

    def __init__(self, app: ASGIApp, path: str | None, proxies: TrustedProxies) -> None:
        """`path` is the configured one; None: the proxies name it."""
        self._app = app
        self._path = path
        self._proxies = proxies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] == "http" and (path := self._path_of(scope)):
            scope = {**scope, "root_path": path}
        await self._app(scope, receive, send)

    def _path_of(self, scope: Scope) -> str:
        if self._path is not None:
            return self._path
        given = Headers(scope=scope).getlist("x-forwarded-prefix")
        if not given or scope.get("client") not in self._proxies:
            return ""
        path = given[0].strip().rstrip("/")
        if len(given) > 1 or len(path) > MAX_PREFIX or not is_root_path(path):
            log.warning("prefix_ignored", prefix=presentable(", ".join(given)), why="it is no path such as /llm")
            return ""
        return path
