"""Output of the commands: tables on a terminal, tab-separated lines elsewhere, texts, and JSON.

All text that a file, a server or a model has made reaches the terminal through this module, which makes it safe.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from typing import Any, TextIO

import click

from celeriac.cli.printable import DIRECTIONS, LINES, printable


def is_terminal(stream: TextIO | None) -> bool:
    """Whether output to a stream of this process goes to a terminal. Python has no stream where it is closed."""
    return stream is not None and stream.isatty()


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


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print rows under the names of their columns."""
    rows = [[printable(cell) for cell in row] for row in rows]
    if not is_terminal(sys.stdout):
        for row in (columns, *rows):
            click.echo("\t".join(row))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*row)
    Console(markup=False).print(table)


def print_fields(fields: Sequence[tuple[str, str]]) -> None:
    """Print names and values, one pair per line."""
    width = max(len(name) for name, _ in fields)
    for name, value in fields:
        click.echo(f"{click.style(f'{name:<{width}}', bold=True)}  {printable(value)}")


def warn(warnings: Iterable[str]) -> None:
    """Print warnings to stderr."""
    for warning in warnings:
        click.echo(click.style(f"Warning: {printable(warning, keep=LINES)}", fg="yellow"), err=True)
