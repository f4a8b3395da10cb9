"""How many steps an engine process may make: two files, which the test and the engine process share."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

#: Environment variable of the engine process with the folder of the files.
FOLDER = "TEST_GATE_FOLDER"


class Gate:
    """The gate of one engine process. A limit is its id and a number of steps."""

    def __init__(self, pid: int) -> None:
        """`pid`: of the engine process, which may be another process than this one."""
        if pid == os.getpid():
            folder = os.environ[FOLDER]
        else:
            variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
            [folder] = [
                line.partition(b"=")[2].decode() for line in variables if line.startswith(f"{FOLDER}=".encode())
            ]
        self._limit = Path(folder) / f"{pid}.limit"
        self._reached = Path(folder) / f"{pid}.reached"

    def allow(self, steps: int) -> str:
        """Allow this many steps from now on. Returns the id of the limit."""
        name = secrets.token_hex(4)
        self._write(self._limit, f"{name} {steps}")
        return name

    def open(self) -> None:
        """Allow any number of steps."""
        self._limit.unlink(missing_ok=True)

    def has_reached(self, name: str) -> bool:
        """Whether the engine has made all steps of a limit."""
        try:
            return self._reached.read_text() == name
        except FileNotFoundError:
            return False

    def limit(self) -> tuple[str, int] | None:
        """The limit; None: any number of steps."""
        try:
            name, steps = self._limit.read_text().split()
        except FileNotFoundError:
            return None
        return name, int(steps)

    def reached(self, limit: tuple[str, int]) -> None:
        """Tell the test that all steps of a limit have been made."""
        self._write(self._reached, limit[0])

    @staticmethod
    def _write(path: Path, text: str) -> None:
        new = path.with_suffix(".new")
        new.write_text(text)
        new.replace(path)
