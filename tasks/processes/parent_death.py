"""Runs a command that ends when the process that started it ends, also if that process is killed.

    python parent_death.py PARENT_PID SIGNAL COMMAND [ARGUMENT ...]

`tasks.processes.child` starts each child through this file. It runs as a script, so that it imports nothing else of the
package. On Linux it asks the kernel to send SIGNAL when the thread that started it ends, and then replaces itself
by the command. On other systems it stays, polls whether its parent still exists, and ends the command's process group
when the parent is gone.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time

#: `prctl` option: the signal that the kernel sends when the parent ends (linux/prctl.h). It survives `exec`.
PR_SET_PDEATHSIG = 1
#: Interval between two checks of the parent, on systems other than Linux, in seconds.
POLL_S = 0.5
#: How long the command may take to end before it is killed, in seconds.
GRACE_S = 10.0


def main() -> int:
    """Replace this process by the command, or guard the command. Returns 1 if the parent has already ended."""
    parent, number, command = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(PR_SET_PDEATHSIG, number, 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "prctl")
        # The parent may have ended before the line above.
        if os.getppid() != parent:
            return 1
        os.execvp(command[0], command)
    return guard(parent, number, command)


def guard(parent: int, number: int, command: list[str]) -> int:
    """Run the command until it ends, or until `parent` is no longer the parent. Returns the command's exit code."""
    child = subprocess.Popen(command, close_fds=False)
    signal.signal(signal.SIGTERM, lambda received, _: child.send_signal(received))
    while True:
        try:
            return child.wait(POLL_S)
        except subprocess.TimeoutExpired:
            if os.getppid() == parent:
                continue
        child.send_signal(number)
        kill_at = time.monotonic() + GRACE_S
        while child.poll() is None and time.monotonic() < kill_at:
            time.sleep(POLL_S / 10)
        os.killpg(os.getpgid(0), signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main())
