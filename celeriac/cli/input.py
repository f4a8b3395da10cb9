"""What the commands read: prompts from the command line and from standard input."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import suppress
from typing import TextIO

import click

from celeriac.cli.output import is_terminal


def prompt_text(argument: str) -> str:
    """A prompt from the command line; `-` means standard input, without one newline at its end.

    Raises ClickException if standard input cannot be read, or if the prompt is not text.
    """
    if argument == "-":
        return _read(lambda stdin: stdin.read()).removesuffix("\n")
    return checked_text(argument, "The prompt")


def read_line(prompt: str) -> str:
    """Print `prompt`, and read the next line of standard input with its line end; empty at the end of the input.

    In a terminal the line can be edited, and the arrow keys bring back earlier lines. Errors as for `prompt_text`.
    """
    if is_terminal(sys.stdin) and is_terminal(sys.stdout):
        return _read(lambda _: _edited_line(prompt))
    click.echo(prompt, nl=False)
    return _read(lambda stdin: stdin.readline())


def next_line(prompt: str) -> str | None:
    """The next line without its line end; None at the end of the input, and after Ctrl-C. Else as `read_line`."""
    try:
        line = read_line(prompt)
    except KeyboardInterrupt:
        line = ""
    if not line and prompt:
        click.echo()
    return line.rstrip("\r\n") if line else None


def _edited_line(prompt: str) -> str:
    with suppress(ImportError):
        # `input` then edits lines. A few builds of Python do not have it.
        import readline  # noqa: F401
    try:
        return f"{input(prompt)}\n"
    except EOFError:
        return ""


def _read(read: Callable[[TextIO], str]) -> str:
    if sys.stdin is None:
        raise click.ClickException("Standard input is closed.")
    try:
        return checked_text(read(sys.stdin), "Standard input")
    except UnicodeDecodeError as error:
        raise click.ClickException(f"Standard input is not text in the encoding {error.encoding}.") from error
    except OSError as error:
        raise click.ClickException(f"Standard input cannot be read: {error.strerror}.") from error


def checked_text(text: str, source: str) -> str:
    """The text. Raises ClickException if it is none; `source` names it, such as "The prompt".

    Python turns bytes that it cannot decode into surrogates, which are not text.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise click.ClickException(f"{source} is not text in the encoding {sys.getfilesystemencoding()}.") from error
    return text
