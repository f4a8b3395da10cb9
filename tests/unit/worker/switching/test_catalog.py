"""What is offered while others write to a folder, delete and break files."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from tests.unit.worker.switching.folders import BROKEN, World, write
from worker.checkpoints.folder import CheckpointFolder
from worker.switching import catalog as catalog_module


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_what_was_there_for_long_is_offered_at_once(tmp_path: Path) -> None:
    write(tmp_path / "d4", 10, 20)
    old = World(tmp_path, age_s=60.0)
    assert old.after(0) == {"d4-10", "d4-20"}
    # The last steps are those that people look for.
    assert old.described == ["d4-20", "d4-10"]
    assert old.catalog.offers()["d4-10"].argument == f"{tmp_path / 'd4'}@10"


def test_a_new_step_is_offered_when_its_files_have_settled_and_then_it_is_the_last_one(
    world: World, tmp_path: Path
) -> None:
    write(tmp_path / "d4", 10)
    assert world.after(1) == set()
    assert world.after(3) == {"d4-10"}
    assert world.latest() == {"d4": "d4-10"}
    write(tmp_path / "d4", 20, meta=False)
    assert world.after(10) == {"d4-10"}
    write(tmp_path / "d4", 20)
    assert world.after(2) == {"d4-10"}
    assert world.after(2) == {"d4-10", "d4-20"}
    assert world.latest() == {"d4": "d4-20"}


def test_a_file_that_grows_is_described_when_it_has_stopped_growing(world: World, tmp_path: Path) -> None:
    write(tmp_path / "d4", 10)
    for size in range(1, 8):
        (tmp_path / "d4" / "model_000010.pt").write_text("x" * size)
        world.after(2)
    assert world.described == []
    assert world.after(3) == {"d4-10"}


def test_a_checkpoint_is_described_once(world: World, tmp_path: Path) -> None:
    write(tmp_path / "d4", 10)
    world.after(60)
    assert world.described == ["d4-10"]


def test_a_deleted_step_and_a_deleted_run_go_after_some_seconds(world: World, tmp_path: Path) -> None:
    write(tmp_path / "d4", 10, 20)
    write(tmp_path / "d8", 5)
    assert world.after(4) == {"d4-10", "d4-20", "d8-5"}
    (tmp_path / "d4" / "model_000020.pt").unlink()
    shutil.rmtree(tmp_path / "d8")
    assert world.after(2) == {"d4-10", "d4-20", "d8-5"}
    assert world.after(2) == {"d4-10"}
    assert world.latest() == {"d4": "d4-10"}


def test_files_that_are_replaced_are_offered_on_and_then_as_what_they_are(world: World, tmp_path: Path) -> None:
    write(tmp_path / "d4", 10)
    world.after(4)
    before = world.catalog.offers()["d4-10"].card.digest
    shutil.rmtree(tmp_path / "d4")
    assert world.after(2) == {"d4-10"}
    write(tmp_path / "d4", 10, content="other weights")
    assert world.after(2) == {"d4-10"}
    assert world.catalog.offers()["d4-10"].card.digest == before
    assert world.after(3) == {"d4-10"}
    assert world.catalog.offers()["d4-10"].card.digest != before


def test_a_broken_one_is_reported_once_and_offered_when_it_is_whole(world: World, tmp_path: Path) -> None:
    write(tmp_path / "d4", 10, content=BROKEN)
    with capture_logs() as logs:
        assert world.after(60) == set()
    assert [(line["event"], line["reason"]) for line in logs] == [
        ("checkpoint_not_offered", f"{tmp_path / 'd4' / 'model_000010.pt'}: it is broken")
    ]
    write(tmp_path / "d4", 10)
    assert world.after(5) == {"d4-10"}


def test_one_that_breaks_while_it_is_offered_has_time_to_become_whole_again(world: World, tmp_path: Path) -> None:
    write(tmp_path / "d4", 10)
    world.after(4)
    write(tmp_path / "d4", 10, content=BROKEN)
    with capture_logs() as logs:
        assert world.after(25) == {"d4-10"}
        assert not logs
        assert world.after(10) == set()
    assert [line["event"] for line in logs] == ["checkpoint_not_offered"]


def test_a_folder_that_cannot_be_read_for_a_while_takes_no_offer_away(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "models" / "d4", 10)
    inner = World(tmp_path / "models")
    assert inner.after(4) == {"d4-10"}
    (tmp_path / "models").rename(tmp_path / "away")
    with capture_logs() as logs:
        assert inner.after(60) == {"d4-10"}
    assert [line["event"] for line in logs] == ["folder_not_read"]
    (tmp_path / "away").rename(tmp_path / "models")
    assert inner.after(5) == {"d4-10"}
    # A run alone may be away too.
    real = Path.stat

    def stat(path: Path, **options: bool) -> os.stat_result:
        if "d4" in path.parts:
            raise PermissionError(13, "Permission denied")
        return real(path, **options)

    monkeypatch.setattr(Path, "stat", stat)
    monkeypatch.setattr("worker.switching.found.runs_below", lambda _: [])
    assert inner.after(10) == {"d4-10"}


def test_a_file_system_that_is_no_longer_mounted_takes_no_offer_away(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "d4", 10)
    assert world.after(4) == {"d4-10"}
    shutil.rmtree(tmp_path / "d4")
    monkeypatch.setattr(world.catalog, "_device", -1)
    with capture_logs() as logs:
        assert world.after(10) == {"d4-10"}
    assert "on another file system than before" in logs[0]["reason"]


def test_a_link_that_leads_to_other_files_is_another_checkpoint_under_its_name(world: World, tmp_path: Path) -> None:
    write(tmp_path / "a" / "b" / "c", 10)
    write(tmp_path / "a" / "b" / "d", 10, content="other weights")
    (tmp_path / "best").symlink_to(tmp_path / "a" / "b" / "c")
    assert world.after(4) == {"best-10"}
    before = world.catalog.offers()["best-10"].card.digest
    (tmp_path / "best").unlink()
    (tmp_path / "best").symlink_to(tmp_path / "a" / "b" / "d")
    assert world.after(5) == {"best-10"}
    assert world.catalog.offers()["best-10"].card.digest != before


def test_a_name_that_is_free_again_goes_to_the_run_that_has_it_now(world: World, tmp_path: Path) -> None:
    write(tmp_path / "a" / "step_000001", 1)
    write(tmp_path / "b" / "step_000001", 1, content="of b")
    assert world.after(4) == {"step_000001", "b-step_000001"}
    of_b = world.catalog.offers()["b-step_000001"].card.digest
    shutil.rmtree(tmp_path / "a")
    assert world.after(10) == {"step_000001"}
    assert world.catalog.offers()["step_000001"].card.digest == of_b


def test_many_checkpoints_are_described_in_several_scans_and_compared_in_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = range(1, 121)
    write(tmp_path / "d4", *steps)
    slow = World(tmp_path, age_s=60.0)
    real = slow.describe

    def describe(folder: CheckpointFolder) -> object:
        slow.now += 0.1
        return real(folder)

    monkeypatch.setattr(slow.catalog, "_describe", describe)
    assert slow.catalog.scan()
    assert {*slow.catalog.offers()} >= {"d4-120", "d4-115"}
    assert len(slow.catalog.offers()) < 20
    while slow.catalog.scan():
        pass
    assert len(slow.catalog.offers()) == 120

    states: list[Path] = []
    monkeypatch.setattr("worker.checkpoints.file_state._state", lambda path: states.append(path))
    for _ in range(-(-120 // catalog_module.CHECKED_AT_ONCE)):
        assert not states or len({path for path in states if path.suffix == ".pt"}) < 120
        slow.catalog.scan()
    assert len({path for path in states if path.suffix == ".pt"}) == 120


def test_a_folder_of_hugging_face_has_no_steps_and_waits_for_all_of_its_files(world: World, tmp_path: Path) -> None:
    folder = tmp_path / "SmolLM2"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    with capture_logs() as logs:
        assert world.after(10) == set()
    assert [line["event"] for line in logs] == ["folder_empty"]
    (folder / "model.safetensors").write_text("weights")
    assert world.after(2) == set()
    (folder / "tokenizer.json").write_text("{}")
    assert world.after(2) == set()
    assert world.after(2) == {"SmolLM2"}
    offered = world.catalog.offers()["SmolLM2"]
    assert (offered.argument, offered.card.latest_of, offered.card.step) == (str(folder), "", None)


def test_an_empty_folder_is_said_once(world: World, tmp_path: Path) -> None:
    with capture_logs() as logs:
        world.after(5)
        write(tmp_path / "d4", 10)
        world.after(5)
    assert [line["event"] for line in logs] == ["folder_empty", "checkpoint_found"]
