"""ASGI middleware: request ids and log, no cookies, HEAD, a limit on bodies, and answers to unexpected errors."""

from __future__ import annotations

import logging
import re
import secrets
import time
from collections.abc import Callable
from contextlib import suppress
from http import HTTPStatus

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.http.error_handlers import error_response, route_path
from api.http.problems import ApiError, Code, presentable

log = structlog.get_logger(__name__)

#: A request id that is accepted from the caller. Any other is replaced.
_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")

#: Most digits of a `Content-Length` that is read.
_MAX_LENGTH_DIGITS = 18


class RequestLog:
    """Gives each request an id and logs one line for it, without bodies.

    The id is the caller's `X-Request-Id` if that is valid. The response has it in the same header.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        request_id = given if _REQUEST_ID.fullmatch(given) else secrets.token_hex(8)
        started = time.perf_counter()
        status: int | None = None
        job_id: str | None = None

        async def send_with_id(message: Message) -> None:
            nonlocal status, job_id
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["X-Request-Id"] = request_id
                status, job_id = message["status"], headers.get("x-job-id")
            await send(message)

        with structlog.contextvars.bound_contextvars(request_id=request_id):
            try:
                await self._app(scope, receive, send_with_id)
            finally:
                client = scope.get("client")
                # Health probes come about once a second.
                log.log(
                    logging.DEBUG if route_path(scope).startswith("/health/") else logging.INFO,
                    "request",
                    method=scope["method"],
                    path=presentable(scope["path"]),
                    status=status,
                    ms=round((time.perf_counter() - started) * 1000, 1),
                    job_id=job_id,
                    client=None if client is None else f"{client[0]}:{client[1]}",
                )


class HeadRequests:
    """Answers HEAD as the application answers GET: the same status and headers, but no body (RFC 9110, section 9.3.2).

    The application stops as soon as it sends the headers, so it opens no stream.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self._app(scope, receive, send)
            return

        async def send_headers(message: Message) -> None:
            await send(message)
            if message["type"] == "http.response.start":
                await send({"type": "http.response.body", "body": b"", "more_body": False})
                raise _HeadAnswered

        with suppress(_HeadAnswered):
            await self._app({**scope, "method": "GET"}, receive, send_headers)


class _HeadAnswered(Exception):  # noqa: N818 (it is no error)
    """A HEAD request has its response."""


class BrokenResponseError(Exception):
    """An unexpected error ended a response that had begun. The server closes the connection, so the client notices."""


class UnexpectedErrors:
    """Turns unexpected errors into responses, so that the middleware outside it adds CORS headers and a log line.

    No error reaches the server, which would log its message.
    """

    def __init__(self, app: ASGIApp, answer: Callable[[Scope, Exception], Response]) -> None:
        self._app = app
        self._answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        started = False

        async def tracking_send(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self._app(scope, receive, tracking_send)
        except _HeadAnswered:
            raise
        except Exception as error:
            if scope["type"] != "http":
                raise
            response = self._answer(scope, error)
            if started:
                # The cause is in the log already, without its message.
                raise BrokenResponseError("A response was broken off. See the log line before this one.") from None
            await response(scope, receive, send)


class BodyLimit:
    """Reads the whole body before the application runs, and answers 413 as soon as the body is too large."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        headers = Headers(scope=scope) if scope["type"] == "http" else Headers()
        if "content-length" not in headers and "transfer-encoding" not in headers:
            await self._app(scope, receive, send)
            return
        body = bytearray()
        declared = headers.get("content-length", "0").lstrip("0") or "0"
        if not (declared.isascii() and declared.isdigit()):
            error = ApiError(Code.INVALID_REQUEST, "Content-Length is not a number.", status=HTTPStatus.BAD_REQUEST)
            await error_response(scope, error)(scope, receive, send)
            return
        # A number of so many digits is larger in any case, and Python would refuse to read thousands of them.
        too_large = len(declared) > _MAX_LENGTH_DIGITS or int(declared) > self._max_bytes
        more = not too_large
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body += message.get("body", b"")
            too_large = len(body) > self._max_bytes
            more = message.get("more_body", False) and not too_large
        if too_large:
            error = ApiError(Code.BODY_TOO_LARGE, f"A request body may have at most {self._max_bytes} bytes.")
            await error_response(scope, error)(scope, receive, send)
            return
        unread: list[Message] = [{"type": "http.request", "body": bytes(body), "more_body": False}]

        async def replay() -> Message:
            return unread.pop() if unread else await receive()

        await self._app(scope, replay, send)
