"""The memory that a process may use: that of the machine, or the limit of its container."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tasks import machine_memory
from tasks.machine_memory import memory_bytes

MACHINE = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


@pytest.mark.parametrize(
    ("content", "bytes_"),
    [("max\n", MACHINE), (f"{2**26}\n", 2**26), (f"{2 * MACHINE}\n", MACHINE), (None, MACHINE)],
    ids=["no limit", "a limit", "a limit above the memory", "no cgroup"],
)
def test_the_memory_of_this_machine(
    content: str | None, bytes_: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "memory.max"
    if content is not None:
        file.write_text(content)
    monkeypatch.setattr(machine_memory, "CGROUP_LIMIT", file)
    assert memory_bytes() == bytes_
