"""What is said about the end of an engine, and when it counts as a lack of memory."""

from __future__ import annotations

from pathlib import Path

import pytest

from worker.engine_process.exit import EngineExit, oom_kills
from worker.engine_process.messages import OUT_OF_MEMORY_EXIT


@pytest.mark.parametrize(
    ("ended", "out_of_memory", "words"),
    [
        (EngineExit(code=1), False, "exit code 1"),
        (EngineExit(code=OUT_OF_MEMORY_EXIT), True, "no memory left"),
        (EngineExit(code=-11), False, "signal 11, a crash in native code"),
        (EngineExit(code=-9), False, "signal 9, perhaps from the kernel's out-of-memory killer"),
        (EngineExit(code=-9, oom_kill_seen=True), True, "signal 9, from the kernel's out-of-memory killer"),
        (EngineExit(code=-9, oom_kill_seen=True, killed_here=True), False, "sent by this worker"),
        (EngineExit(code=-11, oom_kill_seen=True), False, "signal 11"),
    ],
)
def test_the_reason_is_stated_as_far_as_it_is_known(ended: EngineExit, out_of_memory: bool, words: str) -> None:
    assert ended.out_of_memory is out_of_memory
    assert words in str(ended)


def test_the_kills_of_the_own_cgroup_are_counted(tmp_path: Path) -> None:
    own = tmp_path / "cgroup"
    own.write_text("12:cpu:/old\n0::/system.slice/celeriac.service\n")
    folder = tmp_path / "system.slice" / "celeriac.service"
    folder.mkdir(parents=True)
    (folder / "memory.events").write_text("low 0\nhigh 0\nmax 12\noom 3\noom_kill 2\noom_group_kill 0\n")
    assert oom_kills(tmp_path, own) == 2


@pytest.mark.parametrize("content", ["", "12:memory:/docker/abc\n", "0::/nowhere\n"])
def test_without_the_kernels_counter_nothing_is_claimed(tmp_path: Path, content: str) -> None:
    own = tmp_path / "cgroup"
    own.write_text(content)
    assert oom_kills(tmp_path, own) is None
    assert oom_kills(tmp_path, tmp_path / "missing") is None
