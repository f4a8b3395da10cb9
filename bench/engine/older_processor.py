"""Runs a process as on an older processor: torch, oneDNN and MKL use no wider vectors than that processor has.

These libraries read the limit from the environment when they are loaded, so the process must restart. Celeriac's
kernels are built for one kind of processor, which is chosen when they are loaded.
"""

from __future__ import annotations

import os
import sys
from dataclasses import replace

from worker.engine.device import Device

#: Environment variables that limit the libraries, for each kind of processor in `worker.engine.native.library`.
ENVIRONMENTS = {
    "x86-64-v3": {
        "ATEN_CPU_CAPABILITY": "avx2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
    }
}


def restart_as(kind: str) -> None:
    """Restart this command with the environment of `kind`, unless it already has that environment."""
    environment = ENVIRONMENTS[kind]
    if environment.items() <= os.environ.items():
        return
    os.environ.update(environment)
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def older_device(kind: str, *, threads: int) -> Device:
    """Return this machine's CPU with the kernels for another `kind` of processor, and `threads` compute threads."""

    return replace(Device.choose("cpu", threads=threads), processor=kind)
