"""Copies of small data between host and device that do not stall the device's queue.

On CUDA, a copy between the device and ordinary host memory waits until the device has finished its queued work. A copy
between the device and pinned memory is queued like all other work.
"""

from __future__ import annotations

import torch
from torch import Tensor


def send(values: list[float], device: torch.device) -> Tensor:
    """The values as a float64 tensor on `device`. Work that is queued there afterwards sees them."""
    # torch keeps the pinned memory until the copy is done, and then reuses it.
    host = torch.tensor(values, dtype=torch.float64, pin_memory=device.type == "cuda")
    return host.to(device, non_blocking=True)


class PendingIds:
    """Drawn ids on their way to the host; the device may still have to compute them."""

    def __init__(self, ids: Tensor) -> None:
        """Queues the copy of `ids`, a tensor on any device."""
        self._ids = ids
        self._copied: torch.cuda.Event | None = None
        if ids.is_cuda:
            self._ids = torch.empty(ids.shape, dtype=ids.dtype, pin_memory=True)
            self._ids.copy_(ids, non_blocking=True)
            self._copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._copied.record()

    def wait(self) -> list[int]:
        """Wait for the copy and return the ids."""
        if self._copied is not None:
            self._copied.synchronize()
        ids: list[int] = self._ids.tolist()
        return ids
