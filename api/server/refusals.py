"""Answers that the server gives by itself, without the application."""

from __future__ import annotations

import json
from email.utils import formatdate
from http import HTTPStatus

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.http.error_handlers import error_response
from api.http.problems import ApiError, Code

#: Paths that are answered even above the limit of connections, so that monitors see a busy server and not a dead one.
HEALTH_PATHS = ("/health", "/health/live", "/health/ready")
#: Retry-After of a refused connection, in seconds.
RETRY_S = 2
_CLOSE = (b"connection", b"close")


def too_many_connections() -> ApiError:
    """The refusal of a client above the limit of connections."""
    return ApiError(
        Code.TOO_MANY_CONNECTIONS, "The server has too many connections. Send the request again.", retry_after_s=RETRY_S
    )


def request_timeout() -> ApiError:
    """The refusal of a client that sends too slowly."""
    return ApiError(Code.REQUEST_TIMEOUT, "The request did not arrive in time.")


def malformed_request() -> ApiError:
    """The refusal of bytes that are not HTTP."""
    return ApiError(Code.MALFORMED_REQUEST, "This is not a valid HTTP/1.1 request.")


def as_bytes(error: ApiError) -> bytes:
    """The whole response, after which the connection is closed. Its path is not known."""
    body = json.dumps(error.to_problem("")).encode()
    headers = {
        "Date": formatdate(usegmt=True),
        "Content-Type": "application/problem+json",
        "Content-Length": str(len(body)),
        "Connection": "close",
        **error.all_headers(),
    }
    lines = [
        f"HTTP/1.1 {error.http_status} {HTTPStatus(error.http_status).phrase}",
        *(f"{name}: {value}" for name, value in headers.items()),
    ]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


class HealthOnly:
    """An application that answers health checks as `app` does, refuses everything else, and keeps no connection."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""

        async def send_and_close(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", ()), _CLOSE]}
            await send(message)

        if scope["path"].rstrip("/").endswith(HEALTH_PATHS):
            await self._app(scope, receive, send_and_close)
        else:
            await error_response(scope, too_many_connections())(scope, receive, send_and_close)
