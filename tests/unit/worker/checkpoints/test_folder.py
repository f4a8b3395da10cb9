"""Finding the files of a checkpoint by name or path."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.helpers.checkpoint_files import write
from worker.checkpoints.errors import CheckpointError
from worker.checkpoints.folder import default_name, find


def refusal(path_or_name: str | None, root: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        find(path_or_name, root)
    return str(caught.value)


def test_a_name_is_searched_in_the_root(tmp_path: Path) -> None:
    folder = write(tmp_path / "step_000007")
    found = find("step_000007", tmp_path)
    assert (found.path, found.name, found.step) == (folder, "step_000007", 7)
    assert (found.model_file.name, found.meta_file.name) == ("model_000007.pt", "meta_000007.json")


def test_a_path_may_lead_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write(tmp_path / "elsewhere" / "d24", step=1_000_000)
    assert find(str(folder), tmp_path / "root").name == "d24"
    assert find(f"{folder}/", tmp_path / "root").step == 1_000_000
    monkeypatch.chdir(folder)
    assert find(".", tmp_path / "root").name == "d24"
    monkeypatch.chdir(folder.parent)
    assert find("d24", tmp_path / "root").path == folder


def test_the_root_is_searched_before_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here, there = write(tmp_path / "here" / "a"), write(tmp_path / "root" / "a")
    monkeypatch.chdir(here.parent)
    assert find("a", tmp_path / "root").path == there


@pytest.mark.parametrize("name", ["", "  ", None])
def test_without_a_name_the_message_says_what_to_do(tmp_path: Path, name: str | None) -> None:
    assert "CELERIAC_CHECKPOINT" in refusal(name, tmp_path)


@pytest.mark.parametrize("name", ["a b", "-x", ".hidden", "step\n1", "größe", "a:b", "x" * 129, "a\x00b", "*", "~"])
def test_a_name_that_a_queue_cannot_have_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(CheckpointError, match=r"cannot be a checkpoint's name.*--name"):
        find(str(tmp_path), tmp_path, name=name)
    if len(name) < 128 and "\x00" not in name:
        write(tmp_path / name)
        assert "rename the folder, or choose a name with --name" in refusal(f"{tmp_path}/{name}", tmp_path)
        assert find(f"{tmp_path}/{name}", tmp_path, name="chosen").name == "chosen"
    assert "no such folder" in refusal(f"{name}-missing", tmp_path)


@pytest.mark.parametrize("path", ["../outside", "step/../../outside", "..\\outside", "/etc", "..", "no_such"])
def test_a_path_without_a_checkpoint_is_refused(tmp_path: Path, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "root"
    monkeypatch.chdir(write(root / "step_000007"))
    message = refusal(path, root)
    assert message.startswith((f"{path}: ", f"{root}: "))
    assert re.search(r"no such folder|no checkpoint is in this folder|contains runs: step_000007", message)


def test_the_message_for_an_unknown_name_lists_the_known_ones(tmp_path: Path) -> None:
    write(tmp_path / "step_000001")
    write(tmp_path / "step_000002")
    assert "it has step_000001, step_000002" in refusal("step_000003", tmp_path)
    assert "CELERIAC_CHECKPOINT_DIR" in refusal("step_000003", tmp_path / "missing")


def test_a_link_in_the_root_never_leads_out_of_it(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", write(tmp_path / "outside")
    inside = write(root / "inside")
    (root / "out").symlink_to(outside)
    (root / "best").symlink_to(inside)
    message = refusal("out", root)
    assert str(root / "out") in message
    assert "leads out of" in message
    assert (find("best", root).name, find("best", root).path) == ("best", inside)
    assert find(str(root / "best"), root).name == "best"


def test_a_run_with_several_steps_gives_the_last(tmp_path: Path) -> None:
    folder = tmp_path / "d24"
    for step in (2, 1_000_000, 999_999):
        write(folder, step=step)
    (folder / "optim_9000000_rank0.pt").write_bytes(b"ignored")
    (folder / "model_9000000_backup.pt").write_bytes(b"ignored")
    (folder / "old_model_9000000.pt").write_bytes(b"ignored")
    (folder / "model_٩٠٠٠٠٠٠.pt").write_bytes(b"ignored")
    assert find(str(folder), tmp_path).step == 1_000_000


def test_a_step_without_a_meta_file_is_skipped(tmp_path: Path) -> None:
    folder = write(tmp_path / "d24", step=100)
    (folder / "model_000200.pt").write_bytes(b"half")
    assert find(str(folder), tmp_path).step == 100


def test_a_folder_named_after_a_step_gives_that_step(tmp_path: Path) -> None:
    folder = tmp_path / "step_000100"
    for step in (100, 200):
        write(folder, step=step)
    assert find(str(folder), tmp_path).step == 100
    (folder / "meta_000100.json").unlink()
    assert str(folder / "meta_000100.json") in refusal(str(folder), tmp_path)


def test_a_missing_meta_file_is_named(tmp_path: Path) -> None:
    folder = write(tmp_path / "run")
    (folder / "meta_000007.json").unlink()
    message = refusal(str(folder), tmp_path)
    assert message.startswith(str(folder / "meta_000007.json"))
    assert "missing beside model_000007.pt" in message


def test_two_files_of_one_step_are_refused(tmp_path: Path) -> None:
    folder = write(tmp_path / "run")
    (folder / "model_7.pt").write_bytes(b"")
    assert "model_000007.pt and model_7.pt are the same step" in refusal(str(folder), tmp_path)


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "neither nanochat's model_XXXXXX.pt nor" in refusal("empty", tmp_path)


def test_a_path_that_the_system_refuses_gives_a_message(tmp_path: Path) -> None:
    assert "cannot be read: File name too long" in refusal(f"{tmp_path}/{'x/' * 4000}y", tmp_path)


def test_a_file_is_told_with_the_folder_to_give(tmp_path: Path) -> None:
    folder = write(tmp_path / "d4", step=650)
    assert f"this is a file. Give the folder that contains it, and this step as {folder}@650" in refusal(
        str(folder / "model_000650.pt"), tmp_path
    )
    assert refusal(str(folder / "meta_000650.json"), tmp_path).endswith("Give the folder that contains it")


@pytest.mark.parametrize("how", ["d4", "run/d4", "{}/run/d4", "{}/run/d4/", "./run/d4"])
def test_a_step_is_named_behind_an_at_sign(tmp_path: Path, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for step in (200, 650, 1000):
        write(tmp_path / "run" / "d4", step=step)
    monkeypatch.chdir(tmp_path)
    given = how.format(tmp_path)
    for step in ("650", "000650"):
        found = find(f"{given}@{step}", tmp_path / "run")
        assert (found.step, found.name) == (650, "d4-650")
    assert (find(given, tmp_path / "run").step, find(given, tmp_path / "run").name) == (1000, "d4")
    message = refusal(f"{given}@651", tmp_path / "run")
    assert message.endswith("there is no step 651 in this folder; it has 200, 650, 1000")


def test_a_step_of_many_is_missed_with_the_last_ones(tmp_path: Path) -> None:
    folder = tmp_path / "d4"
    folder.mkdir()
    for step in range(100):
        (folder / f"model_{step:06d}.pt").touch()
        (folder / f"meta_{step:06d}.json").touch()
    assert refusal(f"{folder}@100", tmp_path).endswith("98, 99, and 80 before them")


def test_a_step_without_a_meta_file_is_not_offered_and_not_taken(tmp_path: Path) -> None:
    folder = write(tmp_path / "d4", step=100)
    (folder / "model_000200.pt").write_bytes(b"half")
    assert refusal(f"{folder}@300", tmp_path).endswith("it has 100")
    assert "missing beside model_000200.pt" in refusal(f"{folder}@200", tmp_path)


def test_a_folder_whose_name_ends_like_a_step_is_that_folder(tmp_path: Path) -> None:
    folder = write(tmp_path / "d4@650", step=7)
    assert find(str(folder), tmp_path, name="d4").step == 7
    assert find(f"{folder}@7", tmp_path, name="d4").step == 7


def test_a_folder_named_after_a_step_keeps_its_name_for_that_step(tmp_path: Path) -> None:
    folder = write(tmp_path / "step_000100", step=100)
    write(folder, step=200)
    assert find(f"{folder}@100", tmp_path).name == "step_000100"
    assert find(f"{folder}@200", tmp_path).name == "step_000100-200"


@pytest.mark.parametrize(
    ("runs", "name"),
    [
        ("base_checkpoints", "d4"),
        ("mid_checkpoints", "d4-mid"),
        ("chatsft_checkpoints", "d4-sft"),
        ("sft_checkpoints", "d4-sft"),
        ("chatrl_checkpoints", "d4-rl"),
        ("other", "d4"),
    ],
)
def test_the_stages_of_one_model_have_names_of_their_own(
    tmp_path: Path, runs: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write(tmp_path / runs / "d4", step=650)
    assert find(str(folder), tmp_path).name == name
    assert find("d4", tmp_path / runs).name == name
    assert find(f"{runs}/d4", tmp_path).name == name
    assert find(f"{folder}@650", tmp_path).name == f"{name}-650"
    monkeypatch.chdir(folder)
    assert find(".", tmp_path / "missing").name == name
    assert default_name(Path()) == name


def test_a_relative_path_is_searched_in_the_current_folder_and_then_in_the_root(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = write(tmp_path / "here" / "runs" / "a"), write(tmp_path / "root" / "runs" / "a")
    write(tmp_path / "secret" / "a")
    monkeypatch.chdir(tmp_path / "here")
    assert find("runs/a", tmp_path / "root").path == here
    monkeypatch.chdir(tmp_path)
    assert find("runs/a", tmp_path / "root").path == there
    monkeypatch.chdir(tmp_path / "root" / "runs")
    assert "leads out of" in refusal("../secret/a", tmp_path / "root")


def test_a_folder_of_runs_is_told_with_its_runs(tmp_path: Path) -> None:
    for run in ("base_checkpoints/d4", "chatsft_checkpoints/d4"):
        write(tmp_path / run)
    assert "contains runs: base_checkpoints/d4, chatsft_checkpoints/d4" in refusal(str(tmp_path), tmp_path)
    assert "it has base_checkpoints/d4, chatsft_checkpoints/d4" in refusal("d5", tmp_path)
