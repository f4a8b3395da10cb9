"""The weights file as an archive.

torch.save writes an uncompressed zip file, in which each tensor storage is one record
(https://docs.pytorch.org/docs/stable/notes/serialization.html).
"""

from __future__ import annotations

import hashlib
import zipfile
from dataclasses import dataclass
from pathlib import Path

from worker.checkpoints.errors import CheckpointError

_ZIP = b"PK\x03\x04"
_PICKLE = b"\x80"
_GIT_LFS = b"version https://git-lfs"


@dataclass(frozen=True, slots=True)
class Record:
    """One file in the archive."""

    #: Without the first folder, which is named after the file as it was saved.
    name: str
    #: In bytes.
    size: int
    #: CRC-32 of the content. 0 if torch was configured not to compute it.
    crc: int


def records(path: Path) -> list[Record]:
    """The records in the archive's directory. Raises CheckpointError if it is not a complete file of torch.save."""
    try:
        with path.open("rb") as file:
            beginning = file.read(len(_GIT_LFS))
        if not beginning.startswith(_ZIP):
            raise CheckpointError(path, _why_not_an_archive(beginning))
        with zipfile.ZipFile(path) as archive:
            infos = archive.infolist()
    except OSError as error:
        raise CheckpointError(path, f"cannot be read: {error.strerror}") from error
    # zipfile raises NotImplementedError for features that torch never uses.
    except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise CheckpointError(path, f"is damaged or was cut off: copy it again ({error})") from error
    if packed := next((info for info in infos if info.compress_type != zipfile.ZIP_STORED), None):
        raise CheckpointError(
            path, f"was packed again: its record {packed.filename} is compressed, so it cannot be mapped. Copy it again"
        )
    return [Record(info.filename.partition("/")[2], info.file_size, info.CRC) for info in infos]


def digest(path: Path) -> str:
    """SHA-256 (hex) over names, sizes and checksums of the records. Raises CheckpointError.

    The checksums are in the archive's directory, so that gigabytes need not be read. They differ when training changes
    a weight, but do not protect against a file that was made to collide. If checksums are missing, the whole file is
    read.
    """
    found = records(path)
    if any(record.size and not record.crc for record in found):
        try:
            with path.open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise CheckpointError(path, f"cannot be read: {error.strerror}") from error
    lines = (f"{record.name} {record.size} {record.crc}\n" for record in found)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _why_not_an_archive(beginning: bytes) -> str:
    if not beginning:
        return "is empty: copy it again"
    if beginning == _GIT_LFS:
        return "is a pointer of Git LFS and not the file itself: run `git lfs pull`"
    if beginning.startswith(_PICKLE):
        return (
            "is a bare pickle or in PyTorch's format from before version 1.6, which cannot be mapped: load it where it "
            "was made and save its state dict again with torch.save"
        )
    return "was not written by torch.save, or its beginning is damaged"
