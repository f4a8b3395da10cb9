"""A folder appears when it is complete, and never takes the place of other files unasked."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from threading import Thread

import pytest

from worker.checkpoints.errors import CheckpointError
from worker.conversion.model_folder import check_target, is_whole, new_folder

#: Locks the folder, says so, and keeps it until its input ends.
HOLD = """
import sys
from pathlib import Path
from worker.conversion.model_folder import new_folder
with new_folder(Path(sys.argv[1])) as part:
    (part / "config.json").write_text("{}")
    print("begun", flush=True)
    if sys.stdin.read() == "die":
        import os
        os._exit(1)
"""


def hold(folder: Path) -> subprocess.Popen[str]:
    """A process that writes the folder."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    return process


def end(process: subprocess.Popen[str], message: str = "") -> None:
    process.communicate(message, timeout=30)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_the_folder_appears_with_all_its_files(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "model"
    with new_folder(folder) as part:
        (part / "config.json").write_text("{}")
        assert not folder.exists()
        assert part.parent == folder.parent
        assert part.name.startswith(".")
    assert names(folder) == {"config.json"}
    assert names(folder.parent) == {"model"}
    assert is_whole(folder)


def test_an_error_leaves_nothing(tmp_path: Path) -> None:
    def interrupted() -> None:
        with new_folder(tmp_path / "model") as part:
            (part / "config.json").write_text("{}")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert names(tmp_path) == set()


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    end(hold(folder), "die")
    assert not is_whole(folder)
    assert names(tmp_path) == {".model.partial"}
    with new_folder(folder) as part:
        assert names(part) == set()
        (part / "tokenizer.json").write_text("{}")
    assert names(folder) == {"tokenizer.json"}


def test_two_processes_do_not_write_the_same_folder(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    process = hold(folder)
    try:
        with pytest.raises(CheckpointError, match="is being written by another process"), new_folder(folder):
            pass
    finally:
        end(process)
    assert is_whole(folder)


def test_a_process_that_waited_sees_the_folder_that_another_has_written(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    process = hold(folder)
    errors: list[CheckpointError] = []

    def wait() -> None:
        try:
            with new_folder(folder, wait=True):
                pass
        except CheckpointError as error:
            errors.append(error)

    waiting = Thread(target=wait)
    waiting.start()
    end(process)
    waiting.join(30)
    assert [str(error) for error in errors] == [
        f"{folder}: is not empty. Give another folder, or --force to replace it"
    ]
    assert names(tmp_path) == {"model"}


def test_a_folder_is_replaced_only_if_asked_and_only_if_it_is_a_model(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    with new_folder(folder) as part:
        (part / "config.json").write_text("first")
    with pytest.raises(CheckpointError, match="is not empty"), new_folder(folder):
        pass
    (folder / "model-00001-of-00002.safetensors").touch()
    with new_folder(folder, replace=True) as part:
        (part / "config.json").write_text("second")
    assert names(folder) == {"config.json"}
    assert (folder / "config.json").read_text() == "second"
    (folder / "thesis.tex").touch()
    (folder / "photos").mkdir()
    with (
        pytest.raises(CheckpointError, match=r"more than a model: photos, thesis\.tex"),
        new_folder(folder, replace=True),
    ):
        pass
    assert names(tmp_path) == {"model"}
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="is not a folder"):
        check_target(tmp_path / "file", replace=True)


def test_a_link_to_a_folder_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    os.symlink(tmp_path / "disk", tmp_path / "model")
    with new_folder(tmp_path / "model") as part:
        (part / "config.json").write_text("{}")
    assert (tmp_path / "model").is_symlink()
    assert names(tmp_path / "disk") == {"config.json"}
