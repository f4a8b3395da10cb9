"""Running as on an older processor: torch, oneDNN and MKL, ours and a peer's, use no wider vectors than that one had.

They read what they may use from the environment when they are loaded, so a process that is to be limited begins anew.
Our kernels are built for a kind of processor, and are told it where they are loaded.
"""

from __future__ import annotations

import os
import sys
from dataclasses import replace

from worker.engine.device import Device

#: By kinds of `worker.engine.native.library`.
LIMITS = {
    "x86-64-v3": {
        "ATEN_CPU_CAPABILITY": "avx2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
    }
}


def begin_anew_as(kind: str) -> None:
    """Return in a process that is limited to `kind`: this one, or the same command begun anew."""
    wanted = LIMITS[kind]
    if wanted.items() <= os.environ.items():
        return
    os.environ.update(wanted)
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def older_device(kind: str, *, threads: int) -> Device:
    """This processor with the kernels of another `kind`, and so many threads."""

    return replace(Device.choose("cpu", threads=threads), processor=kind)
