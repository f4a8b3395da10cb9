"""Loading waits for files that are being written, and gives up on files that are not."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from worker.checkpoints import file_state
from worker.checkpoints.errors import CheckpointError
from worker.checkpoints.file_state import ABANDONED_AFTER_S, SETTLED_AFTER_S
from worker.checkpoints.folder import find
from worker.engine_process import loading
from worker.engine_process.loading import LoadError, load_when_complete
from worker.engine_process.messages import Start
from worker.model_loader import Progress

TINY = Path(__file__).parents[3] / "fixtures" / "golden" / "E1b-seed" / "step_000102"
MODEL = "model_000102.pt"


def no_progress(loaded: int, total: int) -> None:
    """Reports nothing."""


class World:
    """A checkpoint whose loads the test decides, and a clock that only runs while loading waits."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.now = 0.0
        #: What each load does: it raises, or changes files and succeeds.
        self.loads: list[Callable[[], None]] = []
        #: What happens at these times while loading waits.
        self.events: dict[float, Callable[[], object]] = {}
        self.loaded_at: list[float] = []
        real = file_state.CheckpointFiles
        monkeypatch.setattr(
            loading,
            "CheckpointFiles",
            lambda folder, **options: real(folder, clock=lambda: self.now, wall_clock=lambda: 0.0, **options),
        )
        monkeypatch.setattr(file_state.time, "sleep", self._sleep)
        monkeypatch.setattr(loading, "load_once", self._load)

    def start(self) -> Start:
        return Start(
            folder=find(str(self.folder), self.folder.parent),
            slots=1,
            kv_memory_mb=0,
            prefill_chunk_tokens=1,
            device="cpu",
            threads=1,
            softcap=None,
            weights="exact",
        )

    def load(self) -> Any:
        return load_when_complete(self.start(), no_progress)

    def write(self, content: str) -> None:
        (self.folder / MODEL).write_text(content)

    def _sleep(self, seconds: float) -> None:
        self.now += seconds
        for at in [at for at in self.events if at <= self.now]:
            self.events.pop(at)()

    def _load(self, start: Start, progress: Progress) -> str:
        self.loaded_at.append(round(self.now, 1))
        self.loads.pop(0)()
        return f"load {len(self.loaded_at)}"


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    folder = tmp_path / TINY.name
    shutil.copytree(TINY, folder)
    return World(folder, monkeypatch)


def fail() -> None:
    raise CheckpointError(MODEL, "is damaged")


def succeed() -> None:
    """The load succeeds and nothing changes."""


def test_a_checkpoint_that_does_not_change_is_loaded_at_once(world: World) -> None:
    world.loads = [succeed]
    assert world.load() == "load 1"
    assert world.now == 0


def test_damaged_files_that_do_not_change_fail_after_a_moment(world: World) -> None:
    world.loads = [fail]
    with pytest.raises(LoadError, match="is damaged"):
        world.load()
    assert SETTLED_AFTER_S <= world.now < SETTLED_AFTER_S + 1


def test_damaged_files_that_are_old_fail_at_once(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        loading, "CheckpointFiles", lambda folder, **_: file_state.CheckpointFiles(folder, wall_clock=ages)
    )
    world.loads = [fail]
    with pytest.raises(LoadError, match="is damaged"):
        world.load()
    assert world.now == 0


def test_damaged_files_that_an_earlier_engine_has_loaded_are_waited_for_longer(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = replace(world.start(), loaded_before=True)
    world.loads = [fail]
    with pytest.raises(LoadError, match="is damaged"):
        load_when_complete(start, no_progress)
    assert ABANDONED_AFTER_S <= world.now < ABANDONED_AFTER_S + 1
    world.loads = [fail, succeed]
    world.events = {world.now + ABANDONED_AFTER_S - 1: lambda: world.write("complete")}
    load_when_complete(start, no_progress)
    assert world.loads == []


def ages() -> float:
    return 1e12


def test_files_that_grow_are_loaded_when_they_no_longer_do(world: World) -> None:
    world.loads = [fail, succeed]
    for second in range(1, 11):
        world.events[float(second)] = lambda size=second: world.write("x" * size)  # type: ignore[misc]
    assert world.load() == "load 2"
    assert 10 + SETTLED_AFTER_S <= world.loaded_at[1] < 11 + SETTLED_AFTER_S


def test_a_writer_that_pauses_is_waited_for_and_one_that_stopped_is_not(world: World) -> None:
    world.loads = [fail, fail, fail]
    world.events = {1.0: lambda: world.write("a"), 20.0: lambda: world.write("ab")}
    with pytest.raises(LoadError):
        world.load()
    assert len(world.loaded_at) == 3
    assert 20 + ABANDONED_AFTER_S <= world.now < 21 + ABANDONED_AFTER_S


def test_a_folder_that_is_gone_is_waited_for(world: World) -> None:
    start = world.start()
    away = world.folder.rename(world.folder.with_name("away"))
    world.loads = [fail, succeed]
    world.events = {2.0: lambda: shutil.move(away, world.folder)}
    assert load_when_complete(start, no_progress) == "load 2"  # type: ignore[comparison-overlap]


def test_what_was_loaded_while_files_changed_is_loaded_again(world: World) -> None:
    world.loads = [lambda: world.write("other weights"), succeed]
    assert world.load() == "load 2"


@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory")])
def test_a_lack_of_memory_says_what_to_do(world: World, error: Exception) -> None:
    def raise_it() -> None:
        raise error

    world.loads = [raise_it]
    with pytest.raises(LoadError, match=r"not enough memory to load step_000102 .*CELERIAC_KV_MEMORY_MB"):
        world.load()
    assert world.now == 0


def test_an_error_that_is_not_about_files_is_not_repeated(world: World) -> None:
    def refuse() -> None:
        raise ValueError("device 'cuda' is not available")

    world.loads = [refuse]
    with pytest.raises(LoadError, match="'cuda' is not available"):
        world.load()
    assert world.now == 0
