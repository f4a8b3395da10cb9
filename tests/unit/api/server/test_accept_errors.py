"""Errors of asyncio's accept loop."""

from __future__ import annotations

import asyncio
import logging

import pytest
import structlog

from api.server.accept_errors import keep_quiet


def test_a_flood_of_errors_is_one_line_and_other_errors_are_handled_as_before(
    caplog: pytest.LogCaptureFixture,
) -> None:
    loop = asyncio.new_event_loop()
    try:
        keep_quiet(loop)
        error = OSError(24, "Too many open files")
        with structlog.testing.capture_logs() as lines, caplog.at_level(logging.ERROR, logger="asyncio"):
            for _ in range(5000):
                loop.call_exception_handler(
                    {"message": "socket.accept() out of system resource", "exception": error, "socket": None}
                )
            loop.call_exception_handler({"message": "something else"})
        assert [line["event"] for line in lines] == ["out_of_files"]
        assert [record.message for record in caplog.records] == ["something else"]
    finally:
        loop.close()
