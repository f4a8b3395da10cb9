"""What `celeriac chat` and `celeriac run --chat` share on the command line."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from celeriac.cli.input import checked_text

F = TypeVar("F", bound=Callable[..., Any])

#: Most tokens of an answer unless the caller says otherwise. Answers end by themselves, unlike most other texts.
MAX_TOKENS = 512


def system(command: F) -> F:
    """Add the system message."""
    return click.option(
        "--system",
        metavar="TEXT",
        callback=lambda *given: given[-1] and checked_text(given[-1], "The system message"),
        help="System message: what the model is told before the conversation.",
    )(command)
