"""A child process: how often it is started again, and what is said about its exit."""

from __future__ import annotations

import pytest

from tasks.processes import child
from tasks.processes.child import Child, Role, describe_exit


def test_a_child_that_exits_too_often_is_not_restarted(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(child.time, "monotonic", lambda: now)
    exiting = Child(Role(name="worker", command=[], stop_s=1.0), on_line=str, on_exit=lambda *_: None)
    assert exiting.count_exit() == 0.5
    now = 30.0
    assert exiting.count_exit() == 1.0
    now = 70.0
    assert exiting.count_exit() == 1.0
    now = 80.0
    assert exiting.count_exit() is None


def test_an_exit_code_is_described() -> None:
    assert (describe_exit(3), describe_exit(-9)) == ("exit code 3", "signal SIGKILL")
