"""The loop of `celeriac chat` and of `celeriac run --chat`: messages, answers and commands."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from celeriac.cli.chat.backend import Answer, ChatError
from celeriac.cli.chat.screen import Screen
from celeriac.cli.input import next_line
from celeriac.cli.output import is_terminal

if TYPE_CHECKING:
    from celeriac.cli.chat.backend import Backend
    from celeriac.cli.chat.history import History

HELP = """\
/clear         forget the conversation, except for the system message
/system TEXT   set the system message (without TEXT: remove it)
/save FILE     write the messages to a new file, as JSON
/help          show this
/exit          leave, as Ctrl-D does
Ctrl-C stops an answer. A message that begins with a slash is written with two, as in //etc."""


class Conversation:
    """Reads messages and commands, one a line, until /exit or the end of the input."""

    def __init__(self, backend: Backend, history: History) -> None:
        self._backend = backend
        self._history = history
        self._screen = Screen()
        #: Whether a person types the messages. Lines from a pipe or a file are read without any decoration.
        self._typed = is_terminal(sys.stdin)
        self._prompt = "> " if self._typed and is_terminal(sys.stdout) else ""
        self._failed = False

    def run(self) -> None:
        """Run the conversation.

        Ctrl-C stops an answer, and at the prompt it ends the conversation. If the messages come from a file or a pipe,
        Ctrl-C always ends it, with a KeyboardInterrupt, and a message without an answer makes the exit code 1.
        """
        if self._prompt:
            self._screen.print_note(f"{self._backend.greeting} /help shows the commands; Ctrl-D leaves.")
        while (line := next_line(self._prompt)) is not None:
            if line.startswith("/") and not line.startswith("//"):
                if not self._run_command(line):
                    break
            elif line.strip():
                self._ask(line[1:] if line.startswith("//") else line)
        if self._failed and not self._typed:
            raise click.exceptions.Exit(1)

    def _run_command(self, line: str) -> bool:
        """Carry out a command. Returns False if the conversation ends."""
        name, _, text = line.partition(" ")
        match name, text.strip():
            case (("/exit" | "/quit"), ""):
                return False
            case "/clear", "":
                self._history.clear()
                self._screen.print_note("The conversation is forgotten.")
            case "/system", system:
                self._history.system = system
                self._screen.print_note(
                    "The system message holds from the next answer on." if system else "There is no system message."
                )
            case "/save", file if file:
                self._save(file)
            case "/help", "":
                self._screen.print_note(HELP)
            case _:
                self._screen.print_error(f"There is no command {line!r}; /help shows the commands.")
        return True

    def _save(self, file: str) -> None:
        try:
            self._history.save(Path(file).expanduser())
        except FileExistsError:
            self._screen.print_error(f"{file} exists, and is not overwritten. Choose another name.")
        except (OSError, ValueError, RuntimeError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            self._screen.print_error(f"{file} cannot be written: {reason}.")
        else:
            self._screen.print_note(f"Saved to {file}.")

    def _ask(self, text: str) -> None:
        self._history.add_question(text)
        try:
            answer = self._backend.answer(self._history.messages, self._screen)
        except ChatError as error:
            self._history.remove_question()
            self._screen.end_text(whole=False)
            self._screen.print_error(str(error))
            self._failed = True
            return
        except KeyboardInterrupt:
            if not self._typed:
                raise
            answer = Answer(text=self._screen.text, finish_reason="cancelled")
        self._screen.end_text(whole=answer.whole)
        self._screen.print_tool_calls(answer.tool_calls)
        self._keep(answer)

    def _keep(self, answer: Answer) -> None:
        """Add an answer to the history, and say how it ended if the model did not end it."""
        if answer.finish_reason == "cancelled" and not answer.text:
            self._history.remove_question()
            self._screen.print_note("(stopped; your message is forgotten, because it has no answer)")
            return
        self._history.add_answer(answer)
        if answer.context_full:
            self._screen.print_note("(cut: the context is full; /clear begins a new conversation)")
        elif answer.finish_reason == "length":
            self._screen.print_note("(cut: --max-tokens sets how long an answer may be)")
        elif not answer.whole:
            self._screen.print_note("(stopped)")
