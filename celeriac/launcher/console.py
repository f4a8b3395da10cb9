"""Output of the launcher: its own sentences, and the log events of its children, each with the child's name."""

from __future__ import annotations

import sys

import click

from tasks.logs.events import sentence
from tasks.logs.output import Output, output
from tasks.logs.setup import renderer_for
from tasks.logs.sink import LogSink
from tasks.settings import Settings

_STDOUT, _STDERR = 1, 2


class Console:
    """Prints to stdout, and errors to stderr, as JSON or for people. Thread-safe; no method waits for a reader."""

    def __init__(self, names: list[str], settings: Settings, out: Output = output) -> None:
        """`names`: of all children."""
        self._output = out
        self._sink = LogSink(out, renderer_for(settings, sys.stdout, tuple(names)))

    def info(self, text: str, **fields: object) -> None:
        """Print a sentence of the launcher. `fields`: the values in it, for machines."""
        self._sink.announce(text, fields, fd=_STDOUT)

    def error(self, text: str, **fields: object) -> None:
        """Print an error or a warning to stderr."""
        self._sink.announce(text, fields, error=True, fd=_STDERR)

    def child_line(self, name: str, line: str) -> str:
        """Print a line of a child's output: an event, or any text. Returns it as people read it."""
        return sentence(self._sink.line(click.unstyle(line), process=name, fd=_STDOUT))

    def child_ended(self, name: str) -> None:
        """Remove what a terminal shows of a child."""
        self._sink.forget(name, fd=_STDOUT)

    def flush(self) -> None:
        """Wait for a moment until everything is printed."""
        self._output.flush()
