"""Measures the limits of this machine: bytes that a gemm reads a second, and floating-point operations a second.

Both are measured with fp32 gemms in oneDNN's packed layout (plain ones if torch has no oneDNN). The matrices have
1536 x 6144 elements, and together they do not fit into a processor's cache.
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
#: Rows at which arithmetic bounds a gemm.
_MANY_ROWS = 512


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits at one time; those of a shared machine change."""

    bytes_per_s: float
    flop_per_s: float

    def seconds(self, read: float, flop: float) -> float:
        """Return the least time for reading `read` bytes and doing `flop` operations, which overlap."""
        return max(read / self.bytes_per_s, flop / self.flop_per_s)


class LimitMeter:
    """Measures the limits repeatedly, between other measurements."""

    def __init__(self) -> None:
        cpu = Device("cpu")
        self._gemms = [linear(torch.randn(_OUT, _IN), cpu) for _ in range(_MATRICES)]
        self._row = torch.randn(1, _IN)
        self._rows = torch.randn(_MANY_ROWS, _IN)
        self.measure()

    @torch.inference_mode()
    def measure(self) -> Limits:
        """Measure each limit twice and return the better values. This takes some tenths of a second."""
        read_s, compute_s = [], []
        for _ in range(2):
            began = time.perf_counter()
            for gemm in self._gemms:
                gemm(self._row)
            read_s.append(time.perf_counter() - began)
            began = time.perf_counter()
            for gemm in self._gemms[:2]:
                gemm(self._rows)
            compute_s.append(time.perf_counter() - began)
        return Limits(
            bytes_per_s=_MATRICES * _IN * _OUT * 4 / min(read_s),
            flop_per_s=2 * 2 * _MANY_ROWS * _IN * _OUT / min(compute_s),
        )
