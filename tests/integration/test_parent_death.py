"""A command ends with the process that started it: on Linux by the kernel, elsewhere by polling."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tasks.processes import parent_death
from tests.integration.stack import until

#: Prints its process id and waits; prints a line on SIGTERM.
COMMAND = """
import os, signal, sys, time
def end(number, _):
    print("SIGTERM received", flush=True)
    sys.exit(0)
signal.signal(signal.SIGTERM, end)
print(os.getpid(), flush=True)
while True:
    signal.pause()
"""
#: Runs `parent_death.guard`, which does not use the kernel.
GUARD = (
    "import sys; from tasks.processes.parent_death import guard; "
    "sys.exit(guard(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]))"
)

HOW = {"kernel": [sys.executable, "-I", "-S", parent_death.__file__], "guard": [sys.executable, "-c", GUARD]}


@contextmanager
def launched(how: str, number: signal.Signals, folder: Path) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A launcher process with one guarded command, and the command's process id."""
    output = folder / "output"
    words = [*HOW[how], "PARENT", str(int(number)), sys.executable, "-c", COMMAND]
    launcher_code = (
        "import os, subprocess, sys\n"
        f"words = [str(os.getpid()) if word == 'PARENT' else word for word in {words!r}]\n"
        f"child = subprocess.Popen(words, stdout=open({str(output)!r}, 'w'), start_new_session=True)\n"
        "sys.exit(child.wait())"
    )
    launcher = subprocess.Popen([sys.executable, "-c", launcher_code], text=True, cwd=Path(__file__).parents[2])
    try:
        pid = until(lambda: output.exists() and output.read_text().splitlines()[:1], "the command's start")
        yield launcher, int(pid[0])
    finally:
        launcher.kill()
        launcher.wait()


def runs(pid: int) -> bool:
    """Whether a process exists and is not a zombie."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@pytest.mark.parametrize("how", HOW)
def test_a_command_ends_when_its_launcher_is_killed(how: str, tmp_path: Path) -> None:
    with launched(how, signal.SIGTERM, tmp_path) as (launcher, pid):
        launcher.kill()
        until(lambda: not runs(pid), "the command's end")
    assert (tmp_path / "output").read_text().splitlines()[1:] == ["SIGTERM received"]


@pytest.mark.parametrize("how", HOW)
def test_the_signal_can_be_sigkill(how: str, tmp_path: Path) -> None:
    with launched(how, signal.SIGKILL, tmp_path) as (launcher, pid):
        launcher.kill()
        until(lambda: not runs(pid), "the command's end")
    assert (tmp_path / "output").read_text().splitlines()[1:] == []


@pytest.mark.parametrize("how", HOW)
def test_signals_and_the_exit_code_are_passed_on(how: str, tmp_path: Path) -> None:
    with launched(how, signal.SIGKILL, tmp_path) as (launcher, pid):
        # The child of the launcher: the command itself, or the process that guards it.
        child = int(Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()[0])
        os.kill(child, signal.SIGTERM)
        assert launcher.wait(10) == 0
        assert not runs(pid)


def test_nothing_is_started_if_the_launcher_has_already_ended(tmp_path: Path) -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    words = [*HOW["kernel"], str(gone.pid), "9", sys.executable, "-c", "print('started')"]
    run = subprocess.run(words, capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout) == (1, "")
