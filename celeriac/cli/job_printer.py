"""Prints a job while it runs: its text to stdout, its states to stderr, so that neither disturbs the other."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import TYPE_CHECKING

import click

from celeriac.cli.output import is_terminal, print_row, print_text, terminal_width
from celeriac.cli.printable import printable

if TYPE_CHECKING:
    from celeriac.client import Job


class JobPrinter:
    """Prints the prompt and its continuation to stdout, and one line for each state to stderr.

    On a terminal the queue position is one line that is overwritten; elsewhere each new position is a line. Use it in a
    `with` statement, which ends the text with a newline.
    """

    def __init__(self, job: Job, *, text: bool) -> None:
        """`text`: False: print states only."""
        self._job_id = job.id
        # The prompt is printed with the first piece of its continuation: until then the server may refuse it.
        self._prompt = job.prompt
        self._prints_text = text
        self._text_begun = False
        #: Whether stderr is a terminal, and whether stdout is one as well.
        self._on_terminal = is_terminal(sys.stderr)
        self._shares_terminal = self._on_terminal and is_terminal(sys.stdout)
        #: Whether the text on stdout ends in the middle of a line.
        self._inside_line = False
        self._last_state = ""
        #: The line with the queue position that is on the terminal now.
        self._queue_line = ""
        self._last_position: int | None = None

    def print_text(self, piece: str) -> None:
        """Print the next piece of the text."""
        self._clear_queue_line()
        if not self._prints_text:
            return
        text = piece if self._text_begun else self._prompt + piece
        self._text_begun = True
        print_text(text)
        self._inside_line = not text.endswith("\n") if text else self._inside_line

    def print_whole_text(self, job: Job) -> None:
        """Print the text of a job that has ended, unless some text is printed or the job has none to print."""
        if not self._text_begun and (job.text or job.status == "succeeded"):
            self.print_text(job.text or "")

    def print_state(self, state: str) -> None:
        """Print a state, unless it is the one that was printed last."""
        self._clear_queue_line()
        if state == self._last_state:
            return
        if self._shares_terminal and self._inside_line:
            click.echo(err=True)
            self._inside_line = False
        self._last_state = state
        print_row(self._job_id, state, err=True, separator=" ")

    def print_position(self, position: int | None, state: str) -> None:
        """Print the position in the queue; `state` describes it."""
        if not self._on_terminal:
            if position != self._last_position or not self._last_state:
                self.print_state(state)
        else:
            line = _within(terminal_width(sys.stderr), printable(f"{self._job_id} {state}"), printable(state))
            click.echo(f"\r{line:<{len(self._queue_line)}}", nl=False, err=True)
            self._queue_line = line
        self._last_position = position

    def __enter__(self) -> JobPrinter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End the text, also after an error."""
        self._clear_queue_line()
        if self._text_begun:
            click.echo()
            self._inside_line = False

    def _clear_queue_line(self) -> None:
        """Erase the line with the queue position."""
        if self._queue_line:
            click.echo(f"\r{'':<{len(self._queue_line)}}\r", nl=False, err=True)
            self._queue_line = ""


def _within(width: int, *texts: str) -> str:
    """The first text that fits into one line of the terminal, or the beginning of the last one.

    A longer line would continue on the next one, where it cannot be overwritten. The last column stays free: some
    terminals begin a new line after it.
    """
    return next((text for text in texts if len(text) < width), texts[-1][: width - 1])
