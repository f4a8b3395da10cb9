"""Output of the launcher: its own lines, and the lines of its children, each with the child's name."""

from __future__ import annotations

import threading

import click

#: Colours of the children's names. Further children reuse them.
COLOURS = ("cyan", "green", "yellow", "magenta", "blue")


class Console:
    """Prints whole lines. Thread-safe. Uses colours only on a terminal."""

    def __init__(self, names: list[str]) -> None:
        """`names`: of all children; they are printed in a column."""
        self._width = max(map(len, names))
        self._colours = {name: COLOURS[index % len(COLOURS)] for index, name in enumerate(names)}
        self._lock = threading.Lock()

    def info(self, text: str) -> None:
        """Print a line of the launcher."""
        self._write(click.style(text, bold=True))

    def error(self, text: str) -> None:
        """Print an error or a warning to stderr."""
        self._write(click.style(text, fg="red"), err=True)

    def child_line(self, name: str, line: str) -> None:
        """Print a line of a child's output."""
        self._write(click.style(f"{name:<{self._width}} | ", fg=self._colours[name]) + line)

    def _write(self, text: str, *, err: bool = False) -> None:
        with self._lock:
            try:
                click.echo(text, err=err)
            except OSError:
                # The reader of the output has exited, as with `| head`. Keep reading the children's output: they would
                # block otherwise.
                return
