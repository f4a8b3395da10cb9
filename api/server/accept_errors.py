"""Keeps asyncio's own accept loop quiet, for servers that use it: `uvicorn api.app:app`.

When the process has no file left for a new connection, that loop reports thousands of errors a second.
"""

from __future__ import annotations

import asyncio
from typing import Any

from api.server.rare_log import RareLog

#: How asyncio's report begins.
_MESSAGE = "socket.accept() out of system resource"


def keep_quiet(loop: asyncio.AbstractEventLoop) -> None:
    """Log one line every few seconds for these errors. All other errors of the loop are handled as before."""
    before = loop.get_exception_handler()
    out_of_files = RareLog("out_of_files")

    def handle(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        if str(context.get("message", "")).startswith(_MESSAGE):
            out_of_files.warn(error=str(context.get("exception")), advice="raise the limit of open files (ulimit -n)")
        elif before is None:
            loop.default_exception_handler(context)
        else:
            before(loop, context)

    loop.set_exception_handler(handle)
