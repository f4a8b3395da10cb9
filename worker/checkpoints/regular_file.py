"""Opens and reads files of a checkpoint: only regular files, and at most a given number of bytes.

A FIFO, a device or a socket in place of a file would block the reader or never end.
"""

from __future__ import annotations

import os
import stat
from io import BufferedReader
from pathlib import Path

from worker.checkpoints.errors import CheckpointError

#: The beginning of a file that git left in place of a large file, and what is said of it.
GIT_LFS = b"version https://git-lfs"
IS_POINTER = "is a pointer of Git LFS and not the file itself: run `git lfs pull`"


def open_regular(path: Path, error: type[CheckpointError] = CheckpointError) -> BufferedReader:
    """Open a regular file for reading. Raises `error`."""
    try:
        # Without O_NONBLOCK, the call would wait for the writer of a FIFO.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as cause:
        raise error(path, f"cannot be read: {cause.strerror}") from cause
    except ValueError as cause:
        raise error(path, f"is not the name of a file: {cause}") from cause
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise error(path, "is not a regular file, so it was not read")
    return os.fdopen(descriptor, "rb")


def fill_at(file: BufferedReader, position: int, target: memoryview) -> int:
    """Fill `target` with the bytes of an open file from `position` on. Returns how many there are: all, unless the file
    ends before. The position of the file does not change, so threads may share it. Raises OSError."""
    filled = 0
    while filled < target.nbytes and (count := os.preadv(file.fileno(), [target[filled:]], position + filled)):
        filled += count
    return filled


def read_bytes(path: Path, limit: int, error: type[CheckpointError] = CheckpointError) -> bytes:
    """The content of a regular file of at most `limit` bytes. Raises `error`."""
    parts: list[bytes] = []
    left = limit + 1
    with open_regular(path, error) as file:
        try:
            # The size that the system reports may be wrong: files in /proc have no size.
            while left and (part := file.read(min(left, 1 << 20))):
                parts.append(part)
                left -= len(part)
        except OSError as cause:
            raise error(path, f"cannot be read: {cause.strerror}") from cause
    if not left:
        raise error(path, f"is larger than {limit:,} bytes, the most that is read of such a file")
    return b"".join(parts)
