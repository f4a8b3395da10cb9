"""Replaces `sys.stdout` and `sys.stderr` of a role, so that what libraries print does not block either."""

from __future__ import annotations

import sys
import threading
from typing import Any, TextIO

from tasks.logs.output import Output


class TextStream:
    """A text stream that writes whole lines to an output. Everything else is that of the stream that it replaces."""

    def __init__(self, replaced: TextIO, output: Output) -> None:
        self._replaced = replaced
        self._output = output
        self._fd = replaced.fileno()
        # A signal handler may write while its thread writes.
        self._lock = threading.RLock()
        self._unfinished = ""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._replaced, name)

    def write(self, text: str) -> int:
        """Write text. An unfinished line waits for its end, or for `flush`."""
        with self._lock:
            lines, newline, self._unfinished = (self._unfinished + text).rpartition("\n")
            if newline:
                self._send(lines + newline)
        return len(text)

    def writelines(self, lines: list[str]) -> None:
        """Write several texts."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Write an unfinished line. Does not wait until it is written."""
        with self._lock:
            unfinished, self._unfinished = self._unfinished, ""
            if unfinished:
                self._send(unfinished)

    def _send(self, text: str) -> None:
        self._output.write(text.encode(self._replaced.encoding or "utf-8", "backslashreplace"), self._fd)


def replace_standard_streams(output: Output) -> None:
    """Replace both streams, unless they are replaced already or have no descriptor."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        try:
            stream.fileno()
        except (AttributeError, OSError):
            # The process has no such stream, or a program that embeds it has put another object there.
            continue
        if not isinstance(stream, TextStream):
            stream.flush()
            setattr(sys, name, TextStream(stream, output))
