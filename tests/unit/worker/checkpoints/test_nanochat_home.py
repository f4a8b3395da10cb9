"""Runs in nanochat's own folder, named as its users know them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from celeriac.cli import main
from tasks.settings import settings
from tests.helpers.checkpoint_files import write
from worker.checkpoints.errors import CheckpointError
from worker.checkpoints.folder import find
from worker.checkpoints.nanochat_home import home
from worker.checkpoints.offers import offers


@pytest.fixture(autouse=True)
def fresh_settings() -> Iterator[None]:
    settings.cache_clear()
    yield
    settings.cache_clear()


@pytest.fixture
def nanochat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder as nanochat has it, and a current folder without checkpoints."""
    folder = tmp_path / "nanochat"
    for name in ("base", "mid", "chatsft", "chatrl"):
        write(folder / f"{name}_checkpoints" / "d4", step=650)
    write(folder / "chatsft_checkpoints" / "d4", step=700)
    write(folder / "sft_checkpoints" / "d8")
    (folder / "tokenizer").mkdir()
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(folder))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return folder


@pytest.mark.parametrize(
    ("given", "folder", "name", "step"),
    [
        ("base:d4", "base_checkpoints/d4", "d4", 650),
        ("mid:d4", "mid_checkpoints/d4", "d4-mid", 650),
        ("sft:d4", "chatsft_checkpoints/d4", "d4-sft", 700),
        ("sft:d4@650", "chatsft_checkpoints/d4", "d4-sft-650", 650),
        ("sft:d8", "sft_checkpoints/d8", "d8-sft", 7),
        ("rl:d4", "chatrl_checkpoints/d4", "d4-rl", 650),
    ],
)
def test_a_run_is_found_by_its_stage_and_tag(nanochat: Path, given: str, folder: str, name: str, step: int) -> None:
    found = find(given, nanochat / "none")
    assert (found.path, found.name, found.step) == (nanochat / folder, name, step)
    assert find(given, nanochat / "none", name="chosen").name == "chosen"


def test_a_folder_with_such_a_name_comes_first(nanochat: Path) -> None:
    there = write(nanochat.parent / "root" / "sft:d4", step=9)
    assert find("sft:d4", there.parent, name="chosen").path == there


@pytest.mark.parametrize("given", ["sft:d5", "sft:", "sft:..", "sft:.", "sft:../d4", "pre:d4", "SFT:d4", "sft:d4@9"])
def test_other_names_are_refused(nanochat: Path, given: str) -> None:
    with pytest.raises(CheckpointError) as error:
        find(given, nanochat / "none")
    if given == "sft:d5":
        assert f"sft:d5: there is no such run in {nanochat}/chatsft_checkpoints; it has d4." in str(error.value)
        assert "NANOCHAT_BASE_DIR" in str(error.value)


def test_without_the_variable_it_is_the_folder_in_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.delenv("NANOCHAT_BASE_DIR", raising=False)
    assert home() == Path("/home/someone/.cache/nanochat")
    monkeypatch.setenv("NANOCHAT_BASE_DIR", "")
    assert home() == Path("/home/someone/.cache/nanochat")


def test_the_offers_are_all_runs_that_can_be_named(nanochat: Path) -> None:
    root = nanochat.parent / "root"
    write(root / "runs" / "best")
    (write(root / "unfinished") / "meta_000007.json").unlink()
    assert offers(root) == [
        ("runs/best", "best"),
        ("base:d4", "d4"),
        ("rl:d4", "d4-rl"),
        ("sft:d4", "d4-sft"),
        ("mid:d4", "d4-mid"),
        ("sft:d8", "d8-sft"),
    ]
    for argument, name in offers(root):
        assert find(argument, root).name == name


@pytest.mark.parametrize("command", ["serve", "worker"])
def test_without_a_checkpoint_those_that_are_found_are_listed(
    nanochat: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setenv("CELERIAC_CHECKPOINT_DIR", str(nanochat.parent / "root"))
    write(nanochat.parent / "root" / "a run")
    result = CliRunner().invoke(main, [command])
    assert result.exit_code == 2
    assert "Give the checkpoint to serve: " in result.stderr
    assert "  celeriac serve sft:d4   serves d4-sft\n" in result.stderr
    assert "  celeriac serve 'a run'  serves a run\n" in result.stderr


def test_without_any_checkpoint_the_folders_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CELERIAC_CHECKPOINT_DIR", str(tmp_path / "none"))
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path / "nothing"))
    result = CliRunner().invoke(main, ["serve"])
    assert result.exit_code == 2
    assert f"No checkpoints were found in {tmp_path}/none and {tmp_path}/nothing." in result.stderr
