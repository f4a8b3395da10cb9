"""Which web pages may call the API, and a check of requests that change something.

CORS alone keeps a page of another site from reading answers, but not from sending: a browser sends a POST of a simple
content type without asking first. So the origin of each request that changes something is checked.
"""

from __future__ import annotations

import re
from collections.abc import Collection

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from api.http.error_handlers import error_response
from api.http.problems import ApiError, Code, presentable

#: Origins of pages that this machine itself serves, on any port.
LOCAL_ORIGIN = r"https?://(?:localhost|[A-Za-z0-9-]+\.localhost|127\.0\.0\.1|\[::1\])(?::[0-9]{1,5})?"

_LOCAL_ORIGIN = re.compile(LOCAL_ORIGIN)
_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS", "TRACE"})
_DEFAULT_PORTS = {"http": ":80", "https": ":443"}


class OriginCheck:
    """Answers 403 to a request that changes something and comes from a page that may not call the API.

    Clients that are no browsers send neither `Origin` nor `Sec-Fetch-Site`, and are not affected.
    """

    def __init__(self, app: ASGIApp, allowed: Collection[str] | None) -> None:
        """`allowed` are origins, or `*` for any; None: those of this machine. The server's own is always allowed."""
        self._app = app
        self._allowed = allowed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] == "http" and scope["method"] not in _SAFE_METHODS:
            headers = Headers(scope=scope)
            if not self._allows(headers):
                origin = headers.get("origin", "null")
                error = ApiError(
                    Code.ORIGIN_NOT_ALLOWED,
                    f"Pages of the origin {presentable(origin)!r} may not call this server. If they may, add it to "
                    "CELERIAC_CORS_ORIGINS, which is a JSON list.",
                )
                await error_response(scope, error)(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _allows(self, headers: Headers) -> bool:
        if self._allowed is not None and "*" in self._allowed:
            return True
        site = headers.get("sec-fetch-site")
        if site in ("same-origin", "none"):
            return True  # The browser knows its own address of this server, also where a proxy changes `Host`.
        origin = headers.get("origin")
        if origin is None:
            return site is None
        if self._allowed is None:
            if _LOCAL_ORIGIN.fullmatch(origin):
                return True
        elif origin in self._allowed:
            return True
        return _is_of_host(origin, headers.get("host", ""))


def _is_of_host(origin: str, host: str) -> bool:
    """Whether `origin` is that of a page of the server that the request names. The scheme is known only to a proxy."""
    scheme, separator, name = origin.lower().partition("://")
    default_port = _DEFAULT_PORTS.get(scheme)
    if not separator or not name or default_port is None:
        return False
    return name.removesuffix(default_port) == host.lower().removesuffix(default_port)
