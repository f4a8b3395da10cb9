"""Figures on their way to the device that draws, and drawn ids on their way back, without waiting until it must be.

With a GPU, a copy from or to ordinary memory of the host waits for all that the device has to do before it; one from or
to pinned memory is queued like everything else.
"""

from __future__ import annotations

import torch
from torch import Tensor


def send(figures: list[float], device: torch.device) -> Tensor:
    """The figures on `device`, float64; whatever is queued there afterwards finds them."""
    # torch keeps the pinned memory until the copy is done, and uses it again then.
    host = torch.tensor(figures, dtype=torch.float64, pin_memory=device.type == "cuda")
    return host.to(device, non_blocking=True)


class Arrival:
    """Ids that were asked for and may still have to be computed."""

    def __init__(self, ids: Tensor) -> None:
        """Queues the copy of `ids`, a tensor of any device."""
        self._ids = ids
        self._arrived: torch.cuda.Event | None = None
        if ids.is_cuda:
            self._ids = torch.empty(ids.shape, dtype=ids.dtype, pin_memory=True)
            self._ids.copy_(ids, non_blocking=True)
            self._arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._arrived.record()

    def wait(self) -> list[int]:
        """The ids, once they are here."""
        if self._arrived is not None:
            self._arrived.synchronize()
        ids: list[int] = self._ids.tolist()
        return ids
