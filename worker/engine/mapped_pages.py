"""Releases pages of a mapped file while its tensors are copied, so that loading does not hold the weights twice."""

from __future__ import annotations

import ctypes
import mmap
from bisect import bisect_right
from pathlib import Path

from torch import Tensor


class MappedPages:
    """The address ranges of this process that map files, as they are at construction.

    Without /proc the ranges are unknown and nothing is released: the system may still reclaim the pages by itself.
    """

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []
        maps = Path("/proc/self/maps")
        if not maps.exists():
            return
        for line in maps.read_text().splitlines():
            addresses, _permissions, _offset, _device, inode, *_path = line.split(maxsplit=5)
            if inode != "0":
                start, end = (int(address, 16) for address in addresses.split("-"))
                self._starts.append(start)
                self._ends.append(end)

    def release(self, tensor: Tensor) -> None:
        """Let the system reclaim the whole pages under `tensor`. A later access reads them from the file again.

        Tensors in ordinary memory are not affected. A mapped tensor must not have been written to.
        """
        start = tensor.data_ptr()
        end = start + tensor.nbytes
        index = bisect_right(self._starts, start) - 1
        if index < 0 or end > self._ends[index]:
            return
        first_page = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE
        length = end // mmap.PAGESIZE * mmap.PAGESIZE - first_page
        if length > 0:
            libc = ctypes.CDLL(None, use_errno=True)
            libc.madvise(ctypes.c_void_p(first_page), ctypes.c_size_t(length), ctypes.c_int(mmap.MADV_DONTNEED))
