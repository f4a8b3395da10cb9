"""Everything that differs by device: what there is, number formats, threads, memory."""

from __future__ import annotations

import ctypes
import math
import mmap
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from worker.engine.architecture.config import ModelConfig
from worker.engine.kv.budget import KvBudget
from worker.engine.native.library import library

Kind = Literal["cpu", "cuda", "mps"]

#: Share of the device's memory that the KV cache takes at most unless its size is given.
KV_SHARE = 0.25


@dataclass(frozen=True, slots=True)
class Device:
    """Where the model runs, and how."""

    kind: Kind
    #: Whether torch's count of threads was asked for, and is not only the most that may be used.
    fixed_threads: bool = False

    @classmethod
    def choose(cls, name: Literal["auto", "cpu", "cuda", "mps"] = "auto", *, threads: int = 0) -> Device:
        """The named device, or with `auto` the fastest there is. Sets torch's threads (0: the physical cores,
        or fewer where that is faster).

        ValueError where the named one is missing.
        """
        present: dict[Kind, bool] = {
            "cuda": torch.cuda.is_available(),
            "mps": torch.backends.mps.is_available(),
            "cpu": True,
        }
        there = [kind for kind, is_there in present.items() if is_there]
        kind = there[0] if name == "auto" else name
        if kind not in there:
            raise ValueError(f"device {kind!r} is not there; this machine's torch has: {', '.join(there)}")
        torch.set_num_threads(threads or physical_cores())
        return cls(kind, fixed_threads=threads > 0)

    @property
    def torch_device(self) -> torch.device:
        return torch.device(self.kind)

    @property
    def dtype(self) -> torch.dtype:
        """Of weights, activations and cache."""
        return torch.bfloat16 if self.kind == "cuda" else torch.float32

    @property
    def packs(self) -> bool:
        """Whether matrices are packed for oneDNN."""
        return self.kind == "cpu" and bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]

    @property
    def kernels(self) -> ctypes.CDLL | None:
        """The compiled kernels that run the whole model, where there are any for this device."""
        return library() if self.kind == "cpu" else None

    @property
    def graphs(self) -> bool:
        """Whether a step can be recorded, to be repeated by one launch."""
        return self.kind == "cuda"

    @property
    def complex_products(self) -> bool:
        """Whether complex numbers are as good as real ones."""
        return self.kind == "cpu"

    @property
    def sampling_device(self) -> torch.device:
        """Where tokens are drawn; Metal knows no float64."""
        return torch.device("cpu") if self.kind == "mps" else self.torch_device

    def copy(self, tensor: Tensor) -> Tensor:
        """A copy of a weight in this device's memory and number format, never the file's own pages."""
        return tensor.to(self.torch_device, self.dtype, copy=True)

    def copy_table(self, tensor: Tensor) -> Tensor:
        """A copy of an embedding table. On a CPU it stays in the file's number format: its rows are widened when used,
        and a model with many tables is not twice its size."""
        return tensor.clone() if self.kind == "cpu" else self.copy(tensor)

    def zeros(self, *shape: int) -> Tensor:
        """Zeros in this device's memory and number format. On a CPU the memory is not taken before it is written to,
        as `torch.zeros` would; filling some gigabytes takes seconds. It is taken in small pages: a text touches a
        little of every layer's and head's part, and would take gigabytes in large ones."""
        if self.kind == "cpu":
            memory = mmap.mmap(-1, math.prod(shape) * self.dtype.itemsize)
            if hasattr(mmap, "MADV_NOHUGEPAGE"):
                memory.madvise(mmap.MADV_NOHUGEPAGE)
            return torch.frombuffer(memory, dtype=self.dtype).view(shape)
        return torch.zeros(shape, dtype=self.dtype, device=self.torch_device)

    def is_fatal(self, error: Exception) -> bool:
        """Whether after `error` the device is of no more use to this process, as a CUDA context after a fault."""
        accelerator_error = getattr(torch, "AcceleratorError", None)  # since torch 2.8
        return accelerator_error is not None and isinstance(error, accelerator_error)

    def memory_bytes(self) -> int:
        """All of the device's memory that this process may use."""
        if self.kind == "cuda":
            return int(torch.cuda.get_device_properties(0).total_memory)
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        limit = _cgroup("memory.max")
        return total if limit is None or limit == "max" else min(total, int(limit))

    def kv_bytes_per_token(self, config: ModelConfig) -> int:
        """What one token of one sequence holds in the cache."""
        return 2 * config.n_layer * config.n_kv_head * config.head_dim * self.dtype.itemsize

    def kv_tokens(self, config: ModelConfig, *, slots: int, kv_memory_mb: int = 0) -> int:
        """Tokens of KV cache for `kv_memory_mb` MiB; 0: `slots` full contexts, at most a quarter of the memory."""
        per_token = self.kv_bytes_per_token(config)
        if kv_memory_mb:
            return kv_memory_mb * 2**20 // per_token
        return min(slots * KvBudget.need(config.sequence_len, 0), int(self.memory_bytes() * KV_SHARE) // per_token)


def physical_cores() -> int:
    """Cores that this process may use, two threads of one core counted once; never more than its cgroup grants."""
    if not hasattr(os, "sched_getaffinity"):
        return torch.get_num_threads()  # torch's own choice
    cpus = os.sched_getaffinity(0)
    topology = Path("/sys/devices/system/cpu")
    siblings = {_read(topology / f"cpu{cpu}/topology/thread_siblings_list") or str(cpu) for cpu in cpus}
    quota, _, period = (_cgroup("cpu.max") or "max").partition(" ")
    granted = len(siblings) if quota == "max" else max(1, int(quota) // int(period))
    return min(len(siblings), granted)


def _cgroup(name: str) -> str | None:
    """A file of this container's cgroup (version 2), None where there is none."""
    return _read(Path("/sys/fs/cgroup") / name)


def _read(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None
