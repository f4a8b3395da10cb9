"""Where a text that grows and states that change are written, so that neither spoils the other."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from celeriac.client import Job


class Screen:
    """The prompt and its continuation go to stdout, a line for each state to stderr. At its end the text has a newline.

    On a terminal the place in the queue is one line that changes; elsewhere it is a line for each new position.
    """

    def __init__(self, job: Job, *, text: bool) -> None:
        """`text`: False: states only."""
        self._job_id = job.id
        # The prompt is shown with the first piece of its continuation: it may yet turn out to be too long.
        self._prompt = job.prompt
        self._shows_text = text
        self._begun = False
        self._live = sys.stderr.isatty()
        self._shared = self._live and sys.stdout.isatty()
        self._inside_line = False
        self._state = ""
        self._waiting = ""
        self._position: int | None = None

    def text(self, piece: str) -> None:
        """Show more of the text."""
        self._wipe()
        if not self._shows_text:
            return
        shown = piece if self._begun else self._prompt + piece
        self._begun = True
        click.echo(shown, nl=False)
        self._inside_line = not shown.endswith("\n") if shown else self._inside_line

    def rest(self, job: Job) -> None:
        """Show the text of a job that is over, if nothing of it has been shown yet and there is anything to show."""
        if not self._begun and (job.text or job.status == "succeeded"):
            self.text(job.text or "")

    def state(self, state: str) -> None:
        """Show a state, unless it is the last one that was shown."""
        self._wipe()
        if state == self._state:
            return
        if self._shared and self._inside_line:
            click.echo(err=True)
            self._inside_line = False
        self._state = state
        click.echo(f"{self._job_id} {state}", err=True)

    def waits(self, position: int | None, place: str) -> None:
        """Show a place in the queue."""
        if not self._live:
            if position != self._position or not self._state:
                self.state(place)
        else:
            line = f"{self._job_id} {place}"
            click.echo(f"\r{line:<{len(self._waiting)}}", nl=False, err=True)
            self._waiting = line
        self._position = position

    def __enter__(self) -> Screen:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End the text, also where an error breaks it off."""
        self._wipe()
        if self._begun:
            click.echo()
            self._inside_line = False

    def _wipe(self) -> None:
        """Take the line back that changes."""
        if self._waiting:
            click.echo(f"\r{'':<{len(self._waiting)}}\r", nl=False, err=True)
            self._waiting = ""
