"""Everything that differs by device: availability, number formats, threads and memory."""

from __future__ import annotations

import math
import mmap
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from tasks.machine_memory import memory_bytes
from worker.engine.architecture.config import ModelConfig
from worker.engine.kv.budget import KvBudget

Kind = Literal["cpu", "cuda", "mps"]

#: The largest share of the device's memory that the KV cache takes if its size is not configured.
KV_SHARE = 0.25


@dataclass(frozen=True, slots=True)
class Device:
    """The device that a model runs on, and how it is used."""

    kind: Kind
    #: Whether every step uses as many threads as torch has, because the caller asked for that number. Else that number
    #: is an upper limit.
    fixed_threads: bool = False
    #: Kind of processor that the compiled kernels are built for; None: that of this machine.
    processor: str | None = None

    @classmethod
    def choose(cls, name: Literal["auto", "cpu", "cuda", "mps"] = "auto", *, threads: int = 0) -> Device:
        """The named device, or the fastest available one for `auto`. Sets the number of torch's threads.

        With `threads` 0 it is the number of physical cores, and steps may use fewer threads if that is faster. Raises
        ValueError if the named device is not available.
        """
        availability: dict[Kind, bool] = {
            "cuda": torch.cuda.is_available(),
            "mps": torch.backends.mps.is_available(),
            "cpu": True,
        }
        available = [kind for kind, is_available in availability.items() if is_available]
        kind = available[0] if name == "auto" else name
        if kind not in available:
            raise ValueError(f"device {kind!r} is not available; this machine's torch has: {', '.join(available)}")
        torch.set_num_threads(threads or physical_cores())
        return cls(kind, fixed_threads=threads > 0)

    @property
    def torch_device(self) -> torch.device:
        return torch.device(self.kind)

    @property
    def dtype(self) -> torch.dtype:
        """Number format of weights, activations and KV cache."""
        return torch.bfloat16 if self.kind == "cuda" else torch.float32

    @property
    def packs(self) -> bool:
        """Whether large matrices are packed for oneDNN."""
        return self.kind == "cpu" and bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]

    @property
    def has_graphs(self) -> bool:
        """Whether steps can be captured as CUDA graphs."""
        return self.kind == "cuda"

    @property
    def uses_complex(self) -> bool:
        """Whether rotations use complex numbers, which are fast on CPUs only."""
        return self.kind == "cpu"

    @property
    def sampling_device(self) -> torch.device:
        """The device that tokens are drawn on: the CPU for Metal, which has no float64."""
        return torch.device("cpu") if self.kind == "mps" else self.torch_device

    def copy(self, tensor: Tensor) -> Tensor:
        """A copy of a weight in this device's memory and number format. It never shares memory with `tensor`."""
        return tensor.to(self.torch_device, self.dtype, copy=True)

    def copy_table(self, tensor: Tensor) -> Tensor:
        """A copy of an embedding table.

        On a CPU it keeps the file's number format and its rows are converted when they are used, so that a model with
        many tables does not double in size.
        """
        return tensor.clone() if self.kind == "cpu" else self.copy(tensor)

    def zeros(self, *shape: int) -> Tensor:
        """Zeros in this device's memory and number format.

        On a CPU the system allocates the memory when it is first written to. `torch.zeros` would fill it at once, which
        takes seconds for some gigabytes. Pages are small: a text touches a little of the memory of each layer and head,
        and would allocate gigabytes with huge pages.
        """
        if self.kind == "cpu":
            memory = mmap.mmap(-1, math.prod(shape) * self.dtype.itemsize)
            if hasattr(mmap, "MADV_NOHUGEPAGE"):
                memory.madvise(mmap.MADV_NOHUGEPAGE)
            return torch.frombuffer(memory, dtype=self.dtype).view(shape)
        return torch.zeros(shape, dtype=self.dtype, device=self.torch_device)

    def memory_bytes(self) -> int:
        """Total memory of the device that this process may use, in bytes."""
        if self.kind == "cuda":
            return int(torch.cuda.get_device_properties(0).total_memory)
        return memory_bytes()

    def kv_bytes_per_token(self, config: ModelConfig) -> int:
        """Size of the keys and values of one token in the KV cache."""
        return 2 * config.n_layer * config.n_kv_head * config.head_dim * self.dtype.itemsize

    def kv_tokens(self, config: ModelConfig, *, slots: int, kv_memory_mb: int = 0) -> int:
        """Size of the KV cache in tokens, for `kv_memory_mb` MiB.

        With 0 it has room for `slots` full contexts, but takes at most a quarter of the device's memory.
        """
        per_token = self.kv_bytes_per_token(config)
        if kv_memory_mb:
            return kv_memory_mb * 2**20 // per_token
        return min(slots * KvBudget.need(config.sequence_len, 0), int(self.memory_bytes() * KV_SHARE) // per_token)


def physical_cores() -> int:
    """Number of physical cores that this process may use, limited by the quota of its cgroup."""
    if not hasattr(os, "sched_getaffinity"):
        return torch.get_num_threads()  # torch's own choice
    cpus = os.sched_getaffinity(0)
    topology = Path("/sys/devices/system/cpu")
    siblings = {_read(topology / f"cpu{cpu}/topology/thread_siblings_list") or str(cpu) for cpu in cpus}
    quota, _, period = (_cgroup("cpu.max") or "max").partition(" ")
    allowed = len(siblings) if quota == "max" else max(1, int(quota) // int(period))
    return min(len(siblings), allowed)


def _cgroup(name: str) -> str | None:
    """The content of a file of this process's cgroup (version 2), or None if there is no such file."""
    return _read(Path("/sys/fs/cgroup") / name)


def _read(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None
