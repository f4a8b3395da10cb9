"""The list of the runs in a folder."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from click.testing import CliRunner

from celeriac.cli import main
from celeriac.cli.commands.inspect import listed_steps
from tests.helpers.checkpoint_files import SIZES, write
from worker.checkpoints.runs import runs_in


@pytest.fixture
def nanochat(tmp_path: Path) -> Path:
    """A folder as nanochat makes it: runs of several stages, and the tokenizer of all."""
    for step in (100, 650):
        write(tmp_path / "base_checkpoints" / "d4", era="E4", step=step)
    write(tmp_path / "chatsft_checkpoints" / "d4", era="E7", step=70)
    (tmp_path / "chatsft_checkpoints" / "d4" / "model_000080.pt").write_bytes(b"is being written")
    (tmp_path / "tokenizer").mkdir()
    config = {"vocab_chars": "0123456789", "vocab_size": SIZES["vocab_size"]}
    (tmp_path / "tokenizer" / "tokenizer_config.json").write_text(json.dumps(config))
    return tmp_path


def test_each_run_has_its_name_steps_era_and_tokenizer(nanochat: Path) -> None:
    base, sft = runs_in(nanochat)
    assert (base.name, base.steps, base.step, base.era, base.tokenizer) == ("d4", (100, 650), 650, "E4", "characters")
    assert (sft.name, sft.steps, sft.step, sft.era, sft.problem) == ("d4-sft", (70,), 70, "E7", None)


def test_a_run_that_cannot_be_served_says_why(nanochat: Path) -> None:
    (nanochat / "base_checkpoints" / "d4" / "model_000650.pt").write_bytes(b"no weights")
    (nanochat / "tokenizer" / "tokenizer_config.json").unlink()
    base, sft = runs_in(nanochat)
    assert (base.era, base.tokenizer) == (None, None)
    assert base.problem is not None
    assert "model_000650.pt" in base.problem
    assert (sft.era, sft.tokenizer) == ("E7", None)
    assert sft.problem is not None
    assert "no tokenizer" in sft.problem


def test_a_run_is_no_folder_of_runs_and_neither_is_a_missing_folder(nanochat: Path) -> None:
    assert runs_in(nanochat / "base_checkpoints" / "d4") == []
    assert runs_in(nanochat / "missing") == []
    assert runs_in(nanochat / "tokenizer" / "tokenizer_config.json") == []


def test_links_in_circles_end(nanochat: Path) -> None:
    os.symlink(nanochat, nanochat / "base_checkpoints" / "self")
    assert {run.name for run in runs_in(nanochat)} == {"d4", "d4-sft"}


def test_inspect_lists_the_runs_of_a_folder(nanochat: Path) -> None:
    result = CliRunner().invoke(main, ["inspect", str(nanochat)])
    assert (result.exit_code, result.stderr) == (0, "")
    assert [line.split("\t") for line in result.stdout.splitlines()] == [
        ["FOLDER", "NAME", "STEPS", "MODEL", "TOKENIZER"],
        ["base_checkpoints/d4", "d4", "100, 650", "nanochat E4", "characters"],
        ["chatsft_checkpoints/d4", "d4-sft", "70", "nanochat E7", "characters"],
    ]
    found = json.loads(CliRunner().invoke(main, ["inspect", str(nanochat), "--json"]).stdout)
    assert [(run["name"], run["steps"], run["step"]) for run in found] == [
        ("d4", [100, 650], 650),
        ("d4-sft", [70], 70),
    ]


def test_many_steps_are_cut_and_the_last_is_shown() -> None:
    assert listed_steps(()) == "none"
    assert listed_steps((1, 2, 3, 4, 5)) == "1, 2, 3, 4, 5"
    assert listed_steps(range(100, 800, 100)) == "100, 200, 300, 400, ..., 700"
