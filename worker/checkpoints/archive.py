"""The weights file as an archive.

torch.save writes an uncompressed zip file, in which each tensor storage is one record
(https://docs.pytorch.org/docs/stable/notes/serialization.html).
"""

from __future__ import annotations

import hashlib
import os
import struct
import weakref
import zipfile
import zlib
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path

from worker.checkpoints.errors import CheckpointError
from worker.checkpoints.regular_file import GIT_LFS, IS_POINTER, fill_at, open_regular

_ZIP = b"PK\x03\x04"
_PICKLE = b"\x80"
#: The header before each record, and the places in it of the lengths of the name and of the extra field.
_LOCAL_HEADER = struct.Struct("<4s22xHH")
#: Bit of a record's flags: it is encrypted.
_ENCRYPTED = 1
#: The largest directory, in bytes: some ten thousand records. It is read as a whole.
_MAX_DIRECTORY = 4 << 20
#: Records are read in parts of this size, in bytes, which stay in the processor's cache for their checksum.
_PART = 1 << 20


@dataclass(frozen=True, slots=True)
class Record:
    """One file in the archive."""

    #: Without the first folder, which is named after the file as it was saved.
    name: str
    #: In bytes.
    size: int
    #: CRC-32 of the content. 0 if torch was configured not to compute it.
    crc: int
    #: Position of the content in the archive, in bytes.
    start: int


class Archive:
    """An open weights file. It stays the same file when another one takes its name."""

    def __init__(self, path: Path) -> None:
        """Open the file and read its directory. Raises CheckpointError if it is not a complete file of torch.save."""
        self.path = path
        self._file = open_regular(path)
        self._close = weakref.finalize(self, self._file.close)
        #: By name, in the order of the directory.
        self.records: dict[str, Record] = {}
        #: The records whose checksum has been compared.
        self._checked: set[str] = set()
        try:
            beginning = self._file.read(len(GIT_LFS))
            if not beginning.startswith(_ZIP):
                raise CheckpointError(path, _why_not_an_archive(beginning))
            for record in self._read_directory():
                if self.records.setdefault(record.name, record) is not record:
                    raise CheckpointError(path, f"is damaged: it has two records named {record.name}")
        except OSError as error:
            self.close()
            raise CheckpointError(path, f"cannot be read: {error.strerror}") from error
        except CheckpointError:
            self.close()
            raise

    def close(self) -> None:
        """Close the file. It is also closed when this object is garbage-collected."""
        self._close()

    def read(self, record: Record, limit: int) -> bytes:
        """The content of a record of at most `limit` bytes. Raises CheckpointError."""
        if record.size > limit:
            raise CheckpointError(self.path, f"has a record {record.name} of {record.size:,} bytes; {limit:,} are read")
        content = bytearray(record.size)
        self.read_into(record, 0, memoryview(content))
        return bytes(content)

    def read_into(self, record: Record, offset: int, target: memoryview) -> None:
        """Fill `target` with a record's bytes from `offset` on, and compare the checksum of the whole record.

        Raises CheckpointError, also if the file was cut off or changed since it was opened.
        """
        whole = offset == 0 and target.nbytes == record.size
        if not whole and record.name not in self._checked:
            part = memoryview(bytearray(min(_PART, record.size)))
            crc = 0
            for begin in range(0, record.size, _PART):
                crc = self._fill(record, begin, part[: record.size - begin], crc)
            self._compare(record, crc)
        crc = self._fill(record, offset, target, 0)
        if whole:
            self._compare(record, crc)

    def digest(self) -> str:
        """SHA-256 (hex) over names, sizes and checksums of the records. Raises CheckpointError.

        The checksums are in the archive's directory, so that gigabytes need not be read. They differ when training
        changes a weight, but do not protect against a file that was made to collide. If checksums are missing, the
        whole file is read.
        """
        if any(record.size and not record.crc for record in self.records.values()):
            try:
                self._file.seek(0)
                return hashlib.file_digest(self._file, "sha256").hexdigest()
            except OSError as error:
                raise CheckpointError(self.path, f"cannot be read: {error.strerror}") from error
        lines = (f"{record.name} {record.size} {record.crc}\n" for record in self.records.values())
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    def _fill(self, record: Record, offset: int, target: memoryview, crc: int) -> int:
        """Fill `target` with a record's bytes. Returns their checksum, continued from `crc`."""
        position = record.start + offset
        for begin in range(0, target.nbytes, _PART):
            part = target[begin : begin + _PART]
            try:
                filled = fill_at(self._file, position + begin, part)
            except OSError as error:
                raise CheckpointError(self.path, f"cannot be read: {error.strerror}") from error
            if filled < part.nbytes:
                raise CheckpointError(
                    self.path, f"was cut off while it was read (in record {record.name}): copy it again"
                )
            crc = zlib.crc32(part, crc)
        return crc

    def _compare(self, record: Record, crc: int) -> None:
        if record.crc and crc != record.crc:
            raise CheckpointError(
                self.path,
                f"is damaged, or was changed while it was read: record {record.name} differs from its checksum. Copy "
                "it again",
            )
        self._checked.add(record.name)

    def _read_directory(self) -> list[Record]:
        """The records. Their contents lie one behind the other in the file. Raises CheckpointError."""
        try:
            with zipfile.ZipFile(_DirectoryReader(self._file)) as archive:
                infos, end = archive.infolist(), archive.start_dir
        # zipfile raises NotImplementedError for features that torch never uses, and struct.error for cut extra fields.
        except (zipfile.BadZipFile, ValueError, NotImplementedError, struct.error) as error:
            raise CheckpointError(self.path, f"is damaged or was cut off: copy it again ({error})") from error
        if packed := next((info for info in infos if info.compress_type != zipfile.ZIP_STORED), None):
            raise CheckpointError(
                self.path,
                f"was packed again: its record {packed.filename} is compressed, so it cannot be read in parts. Copy it "
                "again",
            )
        starts = {}
        for info in sorted(infos, key=lambda info: info.header_offset, reverse=True):
            starts[info.filename] = begin = self._begin_of_content(info.header_offset)
            if begin + info.file_size > end or info.compress_size != info.file_size or info.flag_bits & _ENCRYPTED:
                raise CheckpointError(
                    self.path, f"is damaged or was cut off: copy it again (record {info.filename} does not fit in)"
                )
            end = info.header_offset
        return [
            Record(info.filename.partition("/")[2], info.file_size, info.CRC, starts[info.filename]) for info in infos
        ]

    def _begin_of_content(self, header_offset: int) -> int:
        """The position behind the header of a record. Raises CheckpointError."""
        header = os.pread(self._file.fileno(), _LOCAL_HEADER.size, header_offset) if header_offset >= 0 else b""
        if len(header) == _LOCAL_HEADER.size:
            signature, name, extra = _LOCAL_HEADER.unpack(header)
            if signature == _ZIP:
                return header_offset + _LOCAL_HEADER.size + int(name) + int(extra)
        raise CheckpointError(
            self.path, f"is damaged or was cut off: copy it again (no record begins at {header_offset})"
        )


class _DirectoryReader:
    """Lets zipfile read the archive's directory, but not a huge one."""

    def __init__(self, file: BufferedReader) -> None:
        self._file = file
        self.seek, self.tell, self.seekable = file.seek, file.tell, file.seekable

    def read(self, count: int = -1) -> bytes:
        """At most `count` bytes. Raises ValueError if that is more than a directory has."""
        data = self._file.read(_MAX_DIRECTORY + 1 if count < 0 else min(count, _MAX_DIRECTORY + 1))
        if len(data) > _MAX_DIRECTORY:
            raise ValueError(f"its directory is larger than {_MAX_DIRECTORY:,} bytes")
        return data


def _why_not_an_archive(beginning: bytes) -> str:
    if not beginning:
        return "is empty: copy it again"
    if beginning == GIT_LFS:
        return IS_POINTER
    if beginning.startswith(_PICKLE):
        return (
            "is a bare pickle or in PyTorch's format from before version 1.6, which cannot be read in parts: load it "
            "where it was made and save its state dict again with torch.save"
        )
    return "was not written by torch.save, or its beginning is damaged"
