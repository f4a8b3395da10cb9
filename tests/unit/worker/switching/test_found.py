"""The names of the checkpoints in a folder."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.unit.worker.switching.folders import write
from worker.switching.found import Finder, FolderError, Found


def find_in(folder: Path) -> tuple[list[Found], dict[str, str]]:
    """What is found, and why runs are left out."""
    return Finder(folder).find()


def names(folder: Path) -> dict[str, str]:
    """What is found, by its names, as paths in the folder."""
    found, problems = find_in(folder)
    assert not problems
    return {one.name: str(Path(one.argument).relative_to(folder)) for one in found}


def test_runs_lie_in_the_folder_and_one_level_deeper(tmp_path: Path) -> None:
    write(tmp_path / "d4", 10)
    write(tmp_path / "more" / "d8", 20)
    write(tmp_path / "much" / "too" / "deep", 30)
    assert names(tmp_path) == {"d4-10": "d4@10", "d8-20": "more/d8@20"}


def test_every_complete_step_of_a_run_has_a_name_with_its_step_and_that_of_the_run_too(tmp_path: Path) -> None:
    write(tmp_path / "d4", 10, 200)
    write(tmp_path / "d4", 300, meta=False)
    found, _ = find_in(tmp_path)
    assert [(one.name, one.run_name) for one in found] == [("d4-10", "d4"), ("d4-200", "d4")]


def test_the_step_after_which_a_folder_is_named_has_its_name(tmp_path: Path) -> None:
    write(tmp_path / "step_000010", 10, 20)
    found, _ = find_in(tmp_path)
    assert [(one.name, one.run_name) for one in found] == [("step_000010", ""), ("step_000010-20", "step_000010")]


def test_the_stages_of_nanochats_folder_are_part_of_the_names(tmp_path: Path) -> None:
    for stage in ("base_checkpoints", "chatsft_checkpoints", "chatrl_checkpoints"):
        write(tmp_path / stage / "d4", 7)
    (tmp_path / "tokenizer").mkdir()
    assert set(names(tmp_path)) == {"d4-7", "d4-sft-7", "d4-rl-7"}


def test_the_folder_itself_may_be_a_run(tmp_path: Path) -> None:
    write(tmp_path / "d4", 1, 2)
    found, _ = find_in(tmp_path / "d4")
    assert {one.argument: one.name for one in found} == {
        f"{tmp_path / 'd4'}@1": "d4-1",
        f"{tmp_path / 'd4'}@2": "d4-2",
    }


def test_the_second_of_two_runs_with_one_name_gets_the_name_of_the_folder_above_it_too(tmp_path: Path) -> None:
    for folder in ("a", "b", "c"):
        write(tmp_path / folder / "step_000101", 101)
    assert names(tmp_path) == {
        "step_000101": "a/step_000101@101",
        "b-step_000101": "b/step_000101@101",
        "c-step_000101": "c/step_000101@101",
    }


def test_a_run_whose_name_is_taken_in_spite_of_that_is_left_out_with_the_reason(tmp_path: Path) -> None:
    write(tmp_path / "d4", 10)
    write(tmp_path / "d4-10" / "x", 3)
    write(tmp_path / "other" / "d4-10", 10)
    (tmp_path / "other" / "d4-10").rename(tmp_path / "other" / "d4")
    write(tmp_path / "other-d4", 10)
    found, problems = find_in(tmp_path)
    assert {one.name for one in found} == {"d4-10", "x-3", "other-d4-10"}
    [(where, reason)] = problems.items()
    assert where == str(tmp_path / "other-d4")
    assert "another checkpoint is called other-d4-10: rename the folder" in reason


def test_two_files_of_one_step_are_a_problem_of_this_run_alone(tmp_path: Path) -> None:
    write(tmp_path / "d4", 10)
    write(tmp_path / "twice", 10)
    (tmp_path / "twice" / "model_10.pt").touch()
    found, problems = find_in(tmp_path)
    assert [one.name for one in found] == ["d4-10"]
    assert "are the same step" in problems[str(tmp_path / "twice")]


def test_a_folder_that_is_not_there_is_no_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(FolderError, match="cannot be read: No such file or directory"):
        find_in(tmp_path / "absent")


def test_a_run_is_read_again_when_something_was_added_or_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "d4", 10)
    finder = Finder(tmp_path, wall_clock=lambda: time.time() + 60)
    first, _ = finder.find()
    monkeypatch.setattr("worker.switching.found.complete_steps", lambda _: [])
    assert finder.find()[0] == first
    monkeypatch.undo()
    write(tmp_path / "d4", 20)
    assert [one.step for one in finder.find()[0]] == [10, 20]
    (tmp_path / "d4" / "meta_000010.json").unlink()
    assert [one.step for one in finder.find()[0]] == [20]
