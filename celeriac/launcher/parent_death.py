"""A command on a leash: it ends when the process that started it ends, whatever killed that one.

    python leash.py PARENT_PID SIGNAL COMMAND [ARGUMENT ...]

Run as a file, so that nothing of this package is imported: it stands in front of every process of `celeriac serve`.
On Linux the kernel sends SIGNAL when the thread that started us ends, and we become the command. Elsewhere we stay,
ask every moment whether our parent is still the same, and end the command's process group when it is not.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time

#: `prctl` option: signal to get when the parent dies (linux/prctl.h). It survives `exec`.
PR_SET_PDEATHSIG = 1
#: How often the parent is looked for where the kernel does not tell, in seconds.
LOOK_S = 0.5
#: How long a command may take to end before it is killed, in seconds.
GRACE_S = 10.0


def main() -> int:
    """Become or guard the command. Exit code 1 where the parent is gone already."""
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
    """Run the command until it ends, or until `parent` is no longer our parent. Returns its exit code."""
    child = subprocess.Popen(command, close_fds=False)
    signal.signal(signal.SIGTERM, lambda received, _: child.send_signal(received))
    while True:
        try:
            return child.wait(LOOK_S)
        except subprocess.TimeoutExpired:
            if os.getppid() == parent:
                continue
        child.send_signal(number)
        give_up_at = time.monotonic() + GRACE_S
        while child.poll() is None and time.monotonic() < give_up_at:
            time.sleep(LOOK_S / 10)
        os.killpg(os.getpgid(0), signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main())
