"""A handler for a simulated server that answers with JSON."""

from __future__ import annotations

from http.server import BaseHTTPRequestHandler
from json import dumps
from typing import Any


class JsonHandler(BaseHTTPRequestHandler):
    """Answers with JSON, and logs nothing."""

    def reply(self, body: Any) -> None:
        """Answer 200 with `body`."""
        content = dumps(body).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        pass
