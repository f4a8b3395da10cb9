"""Divides the GPUs or CPUs of the machine among several workers."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

#: The NVIDIA driver lists its devices here, one folder per device.
NVIDIA_GPUS = Path("/proc/driver/nvidia/gpus")


def placement(index: int, workers: int, *, device: str, env: Mapping[str, str]) -> dict[str, str]:
    """Environment variables of the worker with this index: its GPU, or its share of the CPUs.

    With more workers than GPUs, workers share GPUs. A single worker gets the whole machine. Settings of the user in
    `env` are respected.
    """
    if workers == 1:
        return {}
    gpus = [] if device in ("cpu", "mps") else _gpus(env)
    if gpus:
        return {"CUDA_VISIBLE_DEVICES": gpus[index % len(gpus)]}
    if "CELERIAC_THREADS" in env or device == "mps":
        return {}
    return {"CELERIAC_THREADS": str(max(1, _cpus() // workers))}


def has_gpus(device: str, env: Mapping[str, str]) -> bool:
    """Whether `placement` gives GPUs to workers."""
    return device not in ("cpu", "mps") and bool(_gpus(env))


def _gpus(env: Mapping[str, str]) -> list[str]:
    if "CUDA_VISIBLE_DEVICES" in env:
        return [name.strip() for name in env["CUDA_VISIBLE_DEVICES"].split(",") if name.strip()]
    return [str(index) for index, _ in enumerate(NVIDIA_GPUS.iterdir())] if NVIDIA_GPUS.is_dir() else []


def _cpus() -> int:
    """Number of CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
