"""The digest of stored tensors. It reads every byte of them, with all processors."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections import OrderedDict
from collections.abc import Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

from worker.checkpoints.huggingface.safetensors import Entry, SafetensorsFile

#: Content is hashed in pieces of this size, in bytes, so that several threads work on one tensor.
_PIECE = 4 << 20
_MAX_THREADS = 8
#: The largest number of files whose digests are remembered.
_MAX_FILES = 1000

#: The digest of each tensor that was read, by the state of its file.
_known: OrderedDict[tuple[int, ...], dict[str, str]] = OrderedDict()
_lock = threading.Lock()


def digest_of(tensors: Collection[tuple[SafetensorsFile, Entry]]) -> str:
    """SHA-256 (hex) over the names, types, shapes and contents of tensors. Raises CheckpointError.

    Neither the order of the tensors nor their distribution over files changes it. A tensor is not read again while its
    file does not change.
    """
    found = {(file, entry.name): _contents_of(file).get(entry.name) for file, entry in tensors}
    unread = [(file, entry) for file, entry in tensors if found[file, entry.name] is None]
    for (file, entry), digest in zip(unread, _read(unread), strict=True):
        found[file, entry.name] = _contents_of(file)[entry.name] = digest
    lines = sorted(
        json.dumps([entry.name, entry.dtype, entry.shape, found[file, entry.name]]) for file, entry in tensors
    )
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _contents_of(file: SafetensorsFile) -> dict[str, str]:
    """The digests of a file's tensors that are known, by name. Those of the files used last are kept."""
    with _lock:
        contents = _known.setdefault(file.state, {})
        _known.move_to_end(file.state)
        if len(_known) > _MAX_FILES:
            _known.popitem(last=False)
        return contents


def _read(tensors: Sequence[tuple[SafetensorsFile, Entry]]) -> list[str]:
    """The digests of the contents of tensors. hashlib lets other threads run meanwhile."""
    pieces = [(file, entry, begin) for file, entry in tensors for begin in range(0, entry.nbytes, _PIECE)]
    if not pieces:
        return [_digest_of_pieces([]) for _ in tensors]
    with ThreadPoolExecutor(min(_processors(), _MAX_THREADS, len(pieces)), initializer=_make_buffer) as pool:
        digests = iter(list(pool.map(_piece_digest, pieces)))
    return [_digest_of_pieces(islice(digests, -(-entry.nbytes // _PIECE))) for _, entry in tensors]


def _digest_of_pieces(digests: Iterable[bytes]) -> str:
    return hashlib.sha256(b"".join(digests)).hexdigest()


_buffers = threading.local()


def _make_buffer() -> None:
    _buffers.piece = memoryview(bytearray(_PIECE))


def _piece_digest(piece: tuple[SafetensorsFile, Entry, int]) -> bytes:
    file, entry, begin = piece
    target: memoryview = _buffers.piece[: min(_PIECE, entry.nbytes - begin)]
    file.read_into(entry, begin, target)
    return hashlib.sha256(target).digest()


def _processors() -> int:
    # macOS has no affinity.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
