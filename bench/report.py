"""How every benchmark ends: a table for people, and one line of JSON, which is the last."""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from itertools import groupby
from typing import Any

from rich.console import Console
from rich.table import Table

from tasks.estimate import quantile

_PACKAGES = ("celeriac", "torch", "celery", "redis", "fastapi")


def report(title: str, rows: Sequence[Mapping[str, Any]], **context: Any) -> None:
    """Print `rows` as tables, one for each run of equal keys, and as JSON with machine, versions and command."""
    for columns, alike in groupby(rows, key=tuple):
        table = Table(title=title)
        for column in columns:
            table.add_column(column, justify="right")
        for row in alike:
            table.add_row(*(f"{value:,.2f}" if isinstance(value, float) else str(value) for value in row.values()))
        Console(file=sys.stderr).print(table)
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


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    versions: dict[str, str | None] = {}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = None
    return {"python": platform.python_version(), "platform": platform.platform(), "versions": versions}


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which `share` of `values` lie: nearest rank. `values` must not be empty."""
    return quantile(values, share)
