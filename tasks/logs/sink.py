"""Where events and the lines of other processes go: through a renderer to the output of this process."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import Any

from tasks.logs.events import made
from tasks.logs.output import Output
from tasks.logs.renderers import Renderer


class LogSink:
    """Renders events and writes them. Thread-safe; no method blocks."""

    def __init__(self, output: Output, renderer: Renderer) -> None:
        self._output = output
        self._renderer = renderer
        output.dropped_line = self._dropped_line

    def event(self, event: Mapping[str, Any], *, process: str | None = None, fd: int = 2) -> None:
        """Write an event. `process`: the process that it is from, if that is another one."""
        self._write(self._renderer.render(event, process), fd)

    def line(self, line: str, *, process: str | None = None, fd: int = 2) -> Mapping[str, Any]:
        """Write a line of another process. Returns the event: that of the line, or one made of a line without one."""
        event = parse(line)
        self.event(event, process=process, fd=fd)
        return event

    def announce(self, text: str, fields: Mapping[str, object], *, error: bool = False, fd: int = 2) -> None:
        """Write a sentence of `celeriac serve` itself. `fields`: the values in it, for machines."""
        self._write(self._renderer.announce(text, fields, error=error), fd)

    def forget(self, process: str, *, fd: int = 2) -> None:
        """Remove what a terminal shows of a process that has ended."""
        self._write(self._renderer.forget(process), fd)

    def _write(self, text: str, fd: int) -> None:
        if text:
            self._output.write(encoded(text), fd)

    def _dropped_line(self, count: int) -> bytes:
        return encoded(self._renderer.render(made("log_lines_dropped", level="warning", count=count)))


def parse(line: str) -> Mapping[str, Any]:
    """The event in a line of JSON, or an event that is called like the line."""
    if line.startswith("{"):
        try:
            event = json.loads(line)
        except ValueError:
            return made(line)
        if isinstance(event, dict) and isinstance(event.get("event"), str):
            return event
    return made(line)


def encoded(text: str) -> bytes:
    """The text in the encoding of stderr. Characters that it does not have are escaped."""
    encoding = getattr(sys.stderr, "encoding", None) or "utf-8"
    return text.encode(encoding, "backslashreplace")
