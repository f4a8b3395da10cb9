"""Which format and which colours the logs of a process have."""

from __future__ import annotations

import io
import subprocess
import sys

import pytest

from tasks.logs.renderers import JsonRenderer, PeopleRenderer
from tasks.logs.setup import renderer_for
from tasks.settings import Settings

EVENT = {"event": "x", "level": "error"}


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_lines_for_people_and_everything_else_json() -> None:
    assert isinstance(renderer_for(Settings(), Terminal()), PeopleRenderer)
    assert isinstance(renderer_for(Settings(), io.StringIO()), JsonRenderer)
    assert isinstance(renderer_for(Settings(), None), JsonRenderer)
    assert isinstance(renderer_for(Settings(log_format="json"), Terminal()), JsonRenderer)
    assert isinstance(renderer_for(Settings(log_format="console"), io.StringIO()), PeopleRenderer)


@pytest.mark.parametrize(("no_color", "coloured"), [(None, True), ("", True), ("1", False)])
def test_an_empty_no_color_counts_as_unset(
    monkeypatch: pytest.MonkeyPatch, no_color: str | None, coloured: bool
) -> None:
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    monkeypatch.delenv("NO_COLOR", raising=False)
    if no_color is not None:
        monkeypatch.setenv("NO_COLOR", no_color)
    assert ("\x1b[31m" in renderer_for(Settings(), Terminal()).render(EVENT)) == coloured


def test_what_libraries_print_does_not_block_and_is_not_lost_at_the_end() -> None:
    code = """
import sys
from tasks.logs import setup_logging
from tasks.settings import Settings
setup_logging(Settings())
print("printed")
print("unfinished", end="", file=sys.stderr)
sys.stderr.flush()
raise RuntimeError("at the end")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stdout == "printed\n"
    assert done.stderr.startswith("unfinishedTraceback")
    assert done.stderr.endswith("RuntimeError: at the end\n")


def test_a_process_without_stderr_writes_its_log_nowhere() -> None:
    """The number of its stderr may belong to another file."""
    code = """
import os
other = os.open(os.devnull, os.O_WRONLY)
reader, writer = os.pipe()
os.dup2(writer, 2)
import structlog
from tasks.logs import flush_logs, setup_logging
from tasks.settings import Settings
setup_logging(Settings())
structlog.get_logger("x").error("an_event")
flush_logs()
os.set_blocking(reader, False)
try:
    print("written", os.read(reader, 100))
except BlockingIOError:
    print("nothing")
"""
    command = f"exec {sys.executable} -c '{code}' 2>&-"
    done = subprocess.run(["sh", "-c", command], stdout=subprocess.PIPE, text=True, check=True)
    assert done.stdout == "nothing\n"
