"""The environment that `celeriac serve` gives its processes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from celeriac.launcher.plan import Options, PlanError, _checkpoints, _environment, _serves, _worker_names
from tasks.settings import Settings
from tests.helpers.checkpoint_files import SIZES, write
from worker.checkpoints.errors import CheckpointError

OPTIONS = Options(
    checkpoints=("x",),
    host="127.0.0.1",
    port=8000,
    device="cpu",
    weights="exact",
    reload=False,
    workers=1,
    flower=False,
    flower_port=5555,
    data_dir=Path("data"),
)


@pytest.fixture
def tokenizer(tmp_path: Path) -> None:
    """A tokenizer for all runs in the folder of the test, where nanochat has it."""
    (tmp_path / "tokenizer").mkdir()
    config = {"vocab_chars": "0123456789", "vocab_size": SIZES["vocab_size"]}
    (tmp_path / "tokenizer" / "tokenizer_config.json").write_text(json.dumps(config))


def served(root: Path, *checkpoints: str, names: tuple[str, ...] = ()) -> dict[str, str]:
    """The checkpoints of `celeriac serve` by their names for clients."""
    return _checkpoints(replace(OPTIONS, checkpoints=checkpoints, names=names), Settings(checkpoint_dir=root))


@pytest.mark.usefixtures("tokenizer")
def test_several_checkpoints_are_served_by_their_names(tmp_path: Path) -> None:
    for runs in ("base_checkpoints", "chatsft_checkpoints"):
        for step in (100, 650):
            write(tmp_path / runs / "d4", step=step)
    base, sft = "base_checkpoints/d4", "chatsft_checkpoints/d4"
    assert served(tmp_path, base, f"{base}@100", sft) == {"d4": base, "d4-100": f"{base}@100", "d4-sft": sft}
    assert served(tmp_path, base, f"{base}@100", names=("new", "old")) == {"new": base, "old": f"{base}@100"}


def test_checkpoints_with_one_name_are_refused_with_the_way_out(tmp_path: Path) -> None:
    for runs in ("one", "two"):
        write(tmp_path / runs / "d4")
    with pytest.raises(PlanError, match=r"one/d4 and two/d4 would both be called d4\. .*--name d4-1 --name d4-2"):
        served(tmp_path, "one/d4", "two/d4")
    with pytest.raises(PlanError, match=r"two/d4/ is given twice\. Use --workers"):
        served(tmp_path, "two/d4", "two/d4/")
    with pytest.raises(CheckpointError, match="cannot be a checkpoint's name"):
        served(tmp_path, "one/d4", names=("a/b",))


def test_each_worker_has_a_name_of_its_own() -> None:
    names = _worker_names(["a", "b"], 2, Settings(worker_name=None))
    assert [[one.rpartition("-")[2] for one in of_checkpoint] for of_checkpoint in names.values()] == [["1", "2"]] * 2
    assert len({one for of_checkpoint in names.values() for one in of_checkpoint}) == 4
    assert _worker_names(["a"], 1, Settings(worker_name="w")) == {"a": ["w"]}
    assert _worker_names(["a", "b"], 1, Settings(worker_name="w@host")) == {"a": ["w-a"], "b": ["w-b"]}


def test_a_checkpoint_without_a_tokenizer_is_refused_before_anything_is_started(tmp_path: Path) -> None:
    write(tmp_path / "one" / "d4")
    with pytest.raises(CheckpointError, match="one/d4: no tokenizer"):
        served(tmp_path, "one/d4")


@pytest.mark.parametrize("log_format", ["auto", "console", "json"])
def test_the_processes_log_events_however_the_launcher_prints_them(log_format: str) -> None:
    settings = Settings.model_validate({"log_format": log_format})
    assert _environment(OPTIONS, settings, "x", "redis://host")["CELERIAC_LOG_FORMAT"] == "json"


def test_workers_of_a_folder_get_the_folder_and_no_checkpoint_of_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("celeriac.launcher.plan.memory_bytes", lambda: 8 << 30)
    options = replace(OPTIONS, checkpoints=(), folder=tmp_path)
    alone = _serves(options, Settings(), {}, "switching")
    assert alone == {
        "CELERIAC_CHECKPOINTS": str(tmp_path),
        "CELERIAC_CHECKPOINT": "",
        "CELERIAC_CHECKPOINT_NAME": "",
        "CELERIAC_MEMORY_MB": "0",
    }
    # Two workers share the memory of the machine.
    assert _serves(replace(options, workers=2), Settings(), {}, "switching")["CELERIAC_MEMORY_MB"] == "2048"
    given = _serves(replace(options, workers=2), Settings(memory_mb=500), {}, "switching")
    assert given["CELERIAC_MEMORY_MB"] == "500"
    assert _serves(OPTIONS, Settings(), {"x": "/d/x"}, "x")["CELERIAC_CHECKPOINT"] == "/d/x"
