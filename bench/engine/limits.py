"""What this machine can do at most: bytes that products read, and arithmetic that they do, a second.

Both are measured with fp32 products of oneDNN's packed layout (plain ones where torch has no oneDNN), for matrices of
1536 x 6144 that together do not fit into a processor's cache.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from worker.engine.device import Device
from worker.engine.torch.linear import linear

_IN, _OUT = 1536, 6144
#: Together 0.6 GB, more than caches hold.
_MATRICES = 16
#: Rows at which a product is bound by arithmetic.
_MANY_ROWS = 512


@dataclass(frozen=True, slots=True)
class Limits:
    """Of one moment: a shared machine's change."""

    bytes_per_s: float
    flop_per_s: float

    def seconds(self, read: float, flop: float) -> float:
        """The least time for reading `read` bytes and doing `flop` operations, which overlap."""
        return max(read / self.bytes_per_s, flop / self.flop_per_s)


class LimitMeter:
    """Measures them again and again, between other measurements."""

    def __init__(self) -> None:
        cpu = Device("cpu")
        self._products = [linear(torch.randn(_OUT, _IN), cpu) for _ in range(_MATRICES)]
        self._row = torch.randn(1, _IN)
        self._rows = torch.randn(_MANY_ROWS, _IN)
        self.measure()

    @torch.inference_mode()
    def measure(self) -> Limits:
        """The better of two tries each; takes some tenths of a second."""
        reading, calculating = [], []
        for _ in range(2):
            began = time.perf_counter()
            for product in self._products:
                product(self._row)
            reading.append(time.perf_counter() - began)
            began = time.perf_counter()
            for product in self._products[:2]:
                product(self._rows)
            calculating.append(time.perf_counter() - began)
        return Limits(
            bytes_per_s=_MATRICES * _IN * _OUT * 4 / min(reading),
            flop_per_s=2 * 2 * _MANY_ROWS * _IN * _OUT / min(calculating),
        )
