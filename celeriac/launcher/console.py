"""What the launcher shows: its own lines, and those of its children behind their names."""

from __future__ import annotations

import threading

import click

#: Colours of the children's names, in turn.
COLOURS = ("cyan", "green", "yellow", "magenta", "blue")


class Console:
    """Writes whole lines, from any thread. Colours only where the output is a terminal."""

    def __init__(self, names: list[str]) -> None:
        """`names` of all children, which are shown in columns of one width."""
        self._width = max(map(len, names))
        self._colours = {name: COLOURS[index % len(COLOURS)] for index, name in enumerate(names)}
        self._lock = threading.Lock()

    def say(self, text: str) -> None:
        """A line for whoever started us."""
        self._write(click.style(text, bold=True))

    def complain(self, text: str) -> None:
        """A line that says what is wrong, on stderr."""
        self._write(click.style(text, fg="red"), err=True)

    def child(self, name: str, line: str) -> None:
        """A line that a child wrote."""
        self._write(click.style(f"{name:<{self._width}} | ", fg=self._colours[name]) + line)

    def _write(self, text: str, *, err: bool = False) -> None:
        with self._lock:
            try:
                click.echo(text, err=err)
            except OSError:
                # Whoever read our output is gone, as with `| head`. The children's output must be read on.
                return
