"""Limits on the request line and headers. The server checks them before it parses a request, and the application again,
for servers that have other limits.
"""

from __future__ import annotations

from starlette.types import ASGIApp, Receive, Scope, Send

from api.http.error_handlers import error_response
from api.http.problems import ApiError, Code

#: Longest request line, in bytes: method, path, query and version.
MAX_REQUEST_LINE = 8_192
#: Most bytes of the request line and all headers together.
MAX_HEADER_BYTES = 16_384
#: Bytes of a request line besides path and query: the longest method, the spaces and the version.
_LINE_OVERHEAD = 20
#: Bytes of a header line besides name and value.
_HEADER_OVERHEAD = 4


def line_too_long() -> ApiError:
    """The refusal of a request line that is too long."""
    return ApiError(Code.URI_TOO_LONG, f"Path and query may have at most about {MAX_REQUEST_LINE} bytes.")


def headers_too_large() -> ApiError:
    """The refusal of headers that are too large."""
    return ApiError(
        Code.HEADERS_TOO_LARGE, f"The request line and all headers may have at most {MAX_HEADER_BYTES} bytes together."
    )


class HeaderLimits:
    """Refuses requests whose headers are too large. Removes cookies, which the API does not use.

    FastAPI parses the cookies of each request, and in some versions of Python the time for that grows with the square
    of their length.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        line = len(scope.get("raw_path") or scope["path"].encode()) + len(scope["query_string"]) + _LINE_OVERHEAD
        headers = sum(len(name) + len(value) + _HEADER_OVERHEAD for name, value in scope["headers"])
        if line > MAX_REQUEST_LINE + _LINE_OVERHEAD:
            await error_response(scope, line_too_long())(scope, receive, send)
        elif line + headers > MAX_HEADER_BYTES + _LINE_OVERHEAD:
            await error_response(scope, headers_too_large())(scope, receive, send)
        else:
            kept = [(name, value) for name, value in scope["headers"] if name != b"cookie"]
            await self._app({**scope, "headers": kept}, receive, send)
