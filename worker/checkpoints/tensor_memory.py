"""Memory for a tensor that is read from a file."""

from __future__ import annotations

import mmap


def allocate(size: int) -> mmap.mmap:
    """New zeroed memory of `size` bytes, in large pages where the system has them.

    Memory of the C library would not be returned to the system when the tensor is no longer needed.
    """
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    return memory
