"""Output of the commands: tables on a terminal, tab-separated lines elsewhere, texts, and JSON.

All text that a file, a server or a model has made reaches the terminal through this module, which makes it safe.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Sequence
from typing import Any, TextIO

import click

from celeriac.cli.printable import DIRECTIONS, LINES, printable

#: Width of a terminal that does not say how wide it is.
USUAL_WIDTH = 80


def is_terminal(stream: TextIO | None) -> bool:
    """Whether output to a stream of this process goes to a terminal. Python has no stream where it is closed."""
    return stream is not None and stream.isatty()


def terminal_width(stream: TextIO) -> int:
    """Width in cells of the terminal of a stream; `USUAL_WIDTH` if it does not say."""
    try:
        return os.get_terminal_size(stream.fileno()).columns or USUAL_WIDTH
    except (OSError, ValueError):
        return USUAL_WIDTH


def print_json(value: Any) -> None:
    """Print a value as one line of JSON."""
    # JSON has no need to escape DEL, but a terminal would obey it.
    click.echo(json.dumps(value).replace("\x7f", "\\u007f"))


def print_text(text: str) -> None:
    """Print a part of a generated text: as it is, but on a terminal without control characters."""
    if is_terminal(sys.stdout):
        text = printable(text, keep=LINES + DIRECTIONS)
    # Otherwise click would remove escape sequences from a text that goes to a file.
    click.echo(text, nl=False, color=True)


def print_row(*cells: str, err: bool = False, separator: str = "\t") -> None:
    """Print names and values as one line."""
    click.echo(separator.join(map(printable, cells)), err=err)


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, cut: str, hide: Sequence[str] = ()) -> None:
    """Print rows under the names of their columns.

    In a narrow terminal the column `cut` is shortened, and columns of `hide` are left out, the first of them first.
    """
    rows = [[printable(cell) for cell in row] for row in rows]
    if not is_terminal(sys.stdout):
        for row in (columns, *rows):
            click.echo("\t".join(row))
        return
    from celeriac.cli.table import lay_out

    (head, *lines), hidden = lay_out(columns, [*rows], width=terminal_width(sys.stdout), cut=cut, hide=hide)
    click.echo("\n".join([click.style(head, bold=True), *lines]))
    if hidden:
        click.echo(f"This terminal is too narrow for {', '.join(hidden)}; --json prints everything.", err=True)


def print_fields(fields: Sequence[tuple[str, str]]) -> None:
    """Print names and values, one pair per line."""
    width = max(len(name) for name, _ in fields)
    for name, value in fields:
        click.echo(f"{click.style(f'{name:<{width}}', bold=True)}  {printable(value)}")


def warn(warnings: Iterable[str]) -> None:
    """Print warnings to stderr."""
    for warning in warnings:
        click.echo(click.style(f"Warning: {printable(warning, keep=LINES)}", fg="yellow"), err=True)
