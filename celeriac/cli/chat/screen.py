"""Prints a conversation: answers to stdout, everything else to stderr."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING

import click

from celeriac.cli.output import is_terminal, print_text
from celeriac.cli.printable import LINES, printable

if TYPE_CHECKING:
    from tasks.tool_call import ToolCall


class Screen:
    """Keeps notes and errors out of the line in which a text is being printed."""

    def __init__(self) -> None:
        self._shares_terminal = is_terminal(sys.stdout) and is_terminal(sys.stderr)
        #: What is printed of the present answer.
        self._pieces: list[str] = []
        #: Whether stdout is in the middle of a line.
        self._inside_line = False

    @property
    def text(self) -> str:
        """The present answer, as far as it is printed."""
        return "".join(self._pieces)

    def print_text(self, piece: str) -> None:
        """Print the next piece of an answer."""
        if piece:
            print_text(piece)
            self._pieces.append(piece)
            self._inside_line = not piece.endswith("\n")

    def end_text(self, *, whole: bool) -> None:
        """End the answer with a newline. `whole`: an answer without text is an empty line."""
        if self._inside_line or (whole and not self._pieces):
            click.echo()
        self._pieces.clear()
        self._inside_line = False

    def print_note(self, note: str) -> None:
        """Print a line about the conversation or its answer."""
        self._print_line(click.style(printable(note, keep=LINES), dim=True))

    def print_error(self, message: str) -> None:
        """Print why there is no answer."""
        self._print_line(f"Error: {printable(message, keep=LINES)}")

    def print_tool_calls(self, calls: Iterable[ToolCall]) -> None:
        """Print the uses of the calculator, one a line."""
        for call in calls:
            result = f"= {call.output}" if call.output else "has no result"
            self.print_note(printable(f"{call.input} {result}"))

    def _print_line(self, line: str) -> None:
        if self._shares_terminal and self._inside_line:
            click.echo()
            self._inside_line = False
        click.echo(line, err=True)
