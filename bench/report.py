"""How every benchmark ends: a table for people, and one line of JSON, which is the last."""

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

from tasks.estimate import quantile

_PACKAGES = ("celeriac", "torch", "celery", "redis", "fastapi")


def report(title: str, rows: Sequence[Mapping[str, Any]], *, quiet: bool = False, **context: Any) -> None:
    """Print `rows` as tables, one for each run of equal keys, unless `quiet`, and all of it as a line of JSON."""
    for columns, alike in groupby(rows, key=tuple):
        table = Table(title=title)
        for column in columns:
            table.add_column(column.replace("_", " "), justify="right")
        for row in alike:
            table.add_row(*map(_cell, row.values()))
        if not quiet:
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


def _cell(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(map(_cell, value))
    if isinstance(value, dict):
        return ", ".join(f"{name} {_cell(part)}" for name, part in value.items())
    return f"{value:,.2f}" if isinstance(value, float) else str(value)


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
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
    """Its name and the widest vectors that torch uses on it."""
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


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which `share` of `values` lie: nearest rank. `values` must not be empty."""
    return quantile(values, share)
