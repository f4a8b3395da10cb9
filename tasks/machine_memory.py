"""The memory of this machine that a process may use."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

#: The share of a device's memory that the checkpoints of a switching worker take together, if that is not configured.
BUDGET_SHARE = 0.5

#: The limit of this process's cgroup (version 2), as in a container.
CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")


def memory_bytes() -> int:
    """Total memory of this machine, or the limit of this process's cgroup if that is lower."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        limit = CGROUP_LIMIT.read_text().strip()
    except OSError:
        return total
    return total if limit == "max" else min(total, int(limit))


def return_free_memory() -> None:
    """Return memory that this process has freed to the system, where the C library (glibc) can do that.

    Python and its libraries keep what they have freed. Call it after work that needed much more than it leaves.
    """
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (AttributeError, OSError, TypeError):
        return
