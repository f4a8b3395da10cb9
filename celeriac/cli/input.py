"""What the commands read: prompts from the command line and from standard input."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TextIO

import click


def prompt_text(argument: str) -> str:
    """A prompt from the command line; `-` means standard input, without one newline at its end.

    Raises ClickException if standard input cannot be read, or if the prompt is not text.
    """
    if argument == "-":
        return _read(lambda stdin: stdin.read()).removesuffix("\n")
    return _checked(argument, "The prompt")


def read_line() -> str:
    """The next line of standard input with its line end; empty at the end of the input. Errors as for `prompt_text`."""
    return _read(lambda stdin: stdin.readline())


def _read(read: Callable[[TextIO], str]) -> str:
    if sys.stdin is None:
        raise click.ClickException("Standard input is closed.")
    try:
        return _checked(read(sys.stdin), "Standard input")
    except UnicodeDecodeError as error:
        raise click.ClickException(f"Standard input is not text in the encoding {error.encoding}.") from error
    except OSError as error:
        raise click.ClickException(f"Standard input cannot be read: {error.strerror}.") from error


def _checked(text: str, source: str) -> str:
    """The text. Python turns bytes that it cannot decode into surrogates, which are not text."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise click.ClickException(f"{source} is not text in the encoding {sys.getfilesystemencoding()}.") from error
    return text
