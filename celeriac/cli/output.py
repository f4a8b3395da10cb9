"""Output of the commands: tables on a terminal, tab-separated lines elsewhere, and JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from typing import Any, TextIO

import click


def is_terminal(stream: TextIO | None) -> bool:
    """Whether output to a stream of this process goes to a terminal. Python has no stream where it is closed."""
    return stream is not None and stream.isatty()


def print_json(value: Any) -> None:
    """Print a value as one line of JSON."""
    click.echo(json.dumps(value))


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print rows under the names of their columns."""
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
        click.echo(f"{click.style(f'{name:<{width}}', bold=True)}  {value}")


def warn(warnings: Iterable[str]) -> None:
    """Print warnings to stderr."""
    for warning in warnings:
        click.echo(click.style(f"Warning: {warning}", fg="yellow"), err=True)
