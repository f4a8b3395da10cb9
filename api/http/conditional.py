"""Conditional requests (RFC 9110, section 13): entity tags, `If-None-Match` and status 304."""

from __future__ import annotations

import hashlib

from fastapi import Request, Response

#: Headers of the full response that a 304 repeats (RFC 9110, section 15.4.5).
_KEPT_HEADERS = ("cache-control", "content-location", "date", "etag", "expires", "vary")


def weak_etag(content: bytes) -> str:
    """The tag of a representation whose meaning is all in `content`. Another meaning gets another tag."""
    return f'W/"{hashlib.sha256(content).hexdigest()[:32]}"'


def not_modified(request: Request, response: Response) -> Response:
    """304 if the client has the representation in `response` already, else `response`, which has an `ETag`."""
    known = {tag.strip() for line in request.headers.getlist("if-none-match") for tag in line.split(",")}
    # The comparison is weak, as HTTP requires here.
    opaque = {tag.removeprefix("W/") for tag in known}
    if "*" not in known and response.headers["etag"].removeprefix("W/") not in opaque:
        return response
    kept = {name: response.headers[name] for name in _KEPT_HEADERS if name in response.headers}
    return Response(status_code=304, headers=kept)
