"""How an engine process ended, and whether the reason was a lack of memory."""

from __future__ import annotations

import signal
from dataclasses import dataclass
from pathlib import Path

from worker.engine_process.messages import OUT_OF_MEMORY_EXIT

_CGROUPS = Path("/sys/fs/cgroup")
_OWN_CGROUP = Path("/proc/self/cgroup")


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineExit:
    """The end of an engine process."""

    #: Exit code; negative after a signal.
    code: int
    #: Whether this worker killed the process, because it made no progress.
    killed_here: bool = False
    #: Whether the kernel killed processes of this worker's cgroup while the engine ran, because there was no memory.
    oom_kill_seen: bool = False

    @property
    def out_of_memory(self) -> bool:
        """Whether it is known that a lack of memory was the reason."""
        by_kernel = self.code == -signal.SIGKILL and self.oom_kill_seen and not self.killed_here
        return by_kernel or self.code == OUT_OF_MEMORY_EXIT

    def __str__(self) -> str:
        """The exit in words. For a signal: its number, and what it usually means."""
        if self.code == OUT_OF_MEMORY_EXIT:
            return f"exit code {self.code}, no memory left"
        if self.code >= 0:
            return f"exit code {self.code}"
        return f"signal {-self.code}{self._hint}"

    @property
    def _hint(self) -> str:
        if self.killed_here:
            return ", sent by this worker because the engine made no progress"
        if self.out_of_memory:
            return ", from the kernel's out-of-memory killer"
        if self.code == -signal.SIGKILL:
            # Nothing proves it: the same signal comes from `kill -9` and from service managers.
            return ", perhaps from the kernel's out-of-memory killer: its log, `dmesg`, would say so"
        return ", a crash in native code" if self.code in (-signal.SIGSEGV, -signal.SIGBUS, -signal.SIGILL) else ""


def oom_kills(cgroups: Path = _CGROUPS, own: Path = _OWN_CGROUP) -> int | None:
    """How many processes of this process's cgroup (version 2) the out-of-memory killer has ended; None if unknown."""
    try:
        # The line of version 2 is `0::PATH`.
        paths = [line.removeprefix("0::/") for line in own.read_text().splitlines() if line.startswith("0::/")]
        events = (cgroups / paths[0] / "memory.events").read_text() if paths else ""
    except OSError:
        return None
    counts = dict(line.split(" ", 1) for line in events.splitlines() if " " in line)
    return int(counts["oom_kill"]) if "oom_kill" in counts else None
