"""Prints the figures of a benchmark: tables on stderr for people, and one line of JSON as the last line of stdout."""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from itertools import groupby
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

#: Largest number of columns for which a row of figures becomes a row of the table.
_MOST_COLUMNS = 7
_PACKAGES = ("celeriac", "torch", "celery", "redis", "fastapi")


def report(title: str, rows: Sequence[Mapping[str, Any]], *, quiet: bool = False, **context: Any) -> None:
    """Print tables of `rows`, unless `quiet`, and a line of JSON with everything. `context` is added to the JSON.

    Adjacent rows with equal keys share a table.
    """
    for _, alike in groupby(rows, key=tuple):
        if not quiet:
            Console(file=sys.stderr).print(_table(title, list(alike)))
    print(
        json.dumps(
            {
                "title": title,
                "command": " ".join(["python", *sys.orig_argv[1:]]),
                **context,
                "machine": machine(),
                "rows": list(rows),
            }
        )
    )


def _table(title: str, rows: Sequence[Mapping[str, Any]]) -> Table:
    """Return a table of rows with equal keys. Long rows become columns."""
    names = [name.replace("_", " ") for name in rows[0]]
    cells = [[_cell(value) for value in row.values()] for row in rows]
    table = Table(title=title)
    if len(names) <= _MOST_COLUMNS:
        for name in names:
            table.add_column(name, justify="right")
        for row in cells:
            table.add_row(*row)
        return table
    for heading in (names[0], *(row[0] for row in cells)):
        table.add_column(heading, justify="right")
    for index in range(1, len(names)):
        table.add_row(names[index], *(row[index] for row in cells))
    return table


def _cell(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(map(_cell, value))
    if isinstance(value, dict):
        return ", ".join(f"{name} {_cell(part)}" for name, part in value.items())
    return f"{value:,.2f}" if isinstance(value, float) else str(value)


def machine() -> dict[str, Any]:
    """Describe the machine and the versions of packages."""
    versions: dict[str, str | None] = {}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = None
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": versions,
    }


def _processor() -> str:
    """Return the processor's name and the widest vectors that torch uses on it."""
    name = platform.processor()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text().splitlines()
        name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), name)
    try:
        import torch
    except ImportError:
        return name
    return f"{name}, {torch.backends.cpu.get_cpu_capability()}"
