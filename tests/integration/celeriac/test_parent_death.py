"""A command on a leash ends with the process that started it, on Linux by the kernel and elsewhere by looking."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from celeriac.launcher import parent_death as leash
from tests.integration.stack import until

#: Says its process id and waits for its end; on SIGTERM it says so.
COMMAND = """
import os, signal, sys, time
def end(number, _):
    print("told to end", flush=True)
    sys.exit(0)
signal.signal(signal.SIGTERM, end)
print(os.getpid(), flush=True)
while True:
    signal.pause()
"""
#: The same from `leash.guard`, which does not ask the kernel.
GUARD = (
    "import sys; from celeriac import leash; sys.exit(leash.guard(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]))"
)

HOW = {"kernel": [sys.executable, "-I", "-S", leash.__file__], "guard": [sys.executable, "-c", GUARD]}


@contextmanager
def launched(how: str, number: signal.Signals, folder: Path) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A launcher with one command on a leash, and the command's process id."""
    output = folder / "output"
    words = [*HOW[how], "PARENT", str(int(number)), sys.executable, "-c", COMMAND]
    launcher_code = (
        "import os, subprocess, sys\n"
        f"words = [str(os.getpid()) if word == 'PARENT' else word for word in {words!r}]\n"
        f"child = subprocess.Popen(words, stdout=open({str(output)!r}, 'w'), start_new_session=True)\n"
        "sys.exit(child.wait())"
    )
    launcher = subprocess.Popen([sys.executable, "-c", launcher_code], text=True, cwd=Path(__file__).parents[3])
    try:
        pid = until(lambda: output.exists() and output.read_text().splitlines()[:1], "the command's start")
        yield launcher, int(pid[0])
    finally:
        launcher.kill()
        launcher.wait()


def runs(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@pytest.mark.parametrize("how", HOW)
def test_a_killed_launcher_takes_its_command_along(how: str, tmp_path: Path) -> None:
    with launched(how, signal.SIGTERM, tmp_path) as (launcher, pid):
        launcher.kill()
        until(lambda: not runs(pid), "the command's end")
    assert (tmp_path / "output").read_text().splitlines()[1:] == ["told to end"]


@pytest.mark.parametrize("how", HOW)
def test_the_signal_can_be_one_that_nobody_survives(how: str, tmp_path: Path) -> None:
    with launched(how, signal.SIGKILL, tmp_path) as (launcher, pid):
        launcher.kill()
        until(lambda: not runs(pid), "the command's end")
    assert (tmp_path / "output").read_text().splitlines()[1:] == []


@pytest.mark.parametrize("how", HOW)
def test_the_commands_exit_code_and_signals_pass(how: str, tmp_path: Path) -> None:
    with launched(how, signal.SIGKILL, tmp_path) as (launcher, pid):
        # The process that the launcher knows: the command itself, or the one that guards it.
        known = int(Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()[0])
        os.kill(known, signal.SIGTERM)
        assert launcher.wait(10) == 0
        assert not runs(pid)


def test_a_launcher_that_is_gone_already_starts_nothing(tmp_path: Path) -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    words = [*HOW["kernel"], str(gone.pid), "9", sys.executable, "-c", "print('started')"]
    answer = subprocess.run(words, capture_output=True, text=True, check=False)
    assert (answer.returncode, answer.stdout) == (1, "")
