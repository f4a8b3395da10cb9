"""Keeps compiled kernels in the user's cache folder, and uses only files that no other user can have written.

A library that is loaded runs as this process. So a file is used if it and its folders belong to this user or to root,
only their owner may write to them, and its content has the digest that is in its name. A file that is incomplete or
was changed has another digest.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

#: The largest library that is read, in bytes. The kernels have some hundred thousand.
MAX_BYTES = 64 << 20
#: Who may write to a file or folder, besides its owner.
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
#: The last part of a file's name: SHA-256 (hex) of its content.
_DIGEST = re.compile(r"-([0-9a-f]{64})\.so")


class KernelCache:
    """The folder `celeriac/kernels` in the user's cache folder. Several processes may use it at the same time."""

    def __init__(self, folder: Path) -> None:
        """`folder` need not exist."""
        self.folder = folder

    @classmethod
    def of_user(cls) -> KernelCache:
        """The cache of this user: below XDG_CACHE_HOME, else below `.cache` in the home folder.

        Raises OSError if there is no home folder.
        """
        base = Path(os.environ.get("XDG_CACHE_HOME", ""))
        # By the specification of these variables, a relative path is ignored.
        if not base.is_absolute():
            try:
                base = Path.home() / ".cache"
            except RuntimeError as error:
                raise FileNotFoundError("this user has no home folder") from error
        return cls(base / "celeriac" / "kernels")

    def find(self, stem: str) -> Iterator[Path]:
        """The libraries whose name begins with `stem`, and that may be loaded. Raises OSError."""
        if not self.folder.exists():
            return
        self._check_folders()
        for path in sorted(self.folder.glob(f"{stem}-*.so")):
            if (match := _DIGEST.fullmatch(path.name, len(stem))) is not None and _content_digest(path) == match[1]:
                yield path

    def add(self, library: Path, stem: str) -> Path:
        """Copy a library into the cache. Returns its path there. Raises OSError."""
        content = library.read_bytes()
        for folder in (self.folder.parent, self.folder):
            folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            folder.mkdir(mode=0o700, exist_ok=True)
        self._check_folders()
        target = self.folder / f"{stem}-{hashlib.sha256(content).hexdigest()}.so"
        # Other processes see the complete file, or none.
        descriptor, name = tempfile.mkstemp(dir=self.folder, prefix=".new-")
        try:
            with os.fdopen(descriptor, "wb") as file:
                os.fchmod(file.fileno(), 0o700)
                file.write(content)
            os.replace(name, target)
        except OSError:
            with suppress(OSError):
                os.unlink(name)
            raise
        return target

    def _check_folders(self) -> None:
        """Make the folders of this user private. Raises PermissionError if they belong to another user."""
        for folder in (self.folder.parent, self.folder):
            status = folder.stat()
            if status.st_uid not in (0, os.geteuid()):
                raise PermissionError(f"{folder} belongs to another user")
            if status.st_mode & _OTHERS_WRITE:
                if status.st_uid != os.geteuid():
                    raise PermissionError(f"other users may write to {folder}")
                folder.chmod(0o700)


def _content_digest(path: Path) -> str | None:
    """SHA-256 (hex) of a file. None if other users may have written it, or if it is no regular file."""
    try:
        # A link may lead to a file of another user, and a FIFO would block this process.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        private = status.st_uid in (0, os.geteuid()) and not status.st_mode & _OTHERS_WRITE
        if not private or not stat.S_ISREG(status.st_mode) or status.st_size > MAX_BYTES:
            return None
        return hashlib.sha256(file.read(MAX_BYTES)).hexdigest()
