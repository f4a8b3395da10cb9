"""Meta files of all versions of the trainers are read. Files without a valid shape are refused, with the reason."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.checkpoint_files import SIZES, meta, write
from worker.checkpoints.errors import CheckpointError
from worker.checkpoints.folder import find
from worker.checkpoints.formats import load
from worker.checkpoints.meta import Meta, read


def read_text(folder: Path, text: str) -> Meta:
    file = folder / "meta_000007.json"
    file.write_text(text)
    return read(file)


def refusal(folder: Path, text: str) -> str:
    with pytest.raises(CheckpointError) as caught:
        read_text(folder, text)
    assert str(caught.value).startswith(f"{folder / 'meta_000007.json'}: ")
    return str(caught.value)


@pytest.mark.parametrize(
    ("fields", "loss", "name"),
    [
        ({"val_bpb": 0.5}, 0.5, "val_bpb"),
        ({"val_loss": 0.2627}, 0.2627, "val_loss"),
        ({"val_bpb": 0.5, "val_loss": 1.0}, 0.5, "val_bpb"),
        ({"val_bpb": None, "val_loss": 1.0}, 1.0, "val_loss"),
        ({"val_loss": 1}, 1.0, "val_loss"),
        ({}, None, None),
        ({"val_bpb": None}, None, None),
        ({"val_bpb": float("inf")}, None, None),
        ({"val_bpb": float("nan")}, None, None),
        ({"val_bpb": True}, None, None),
        ({"val_bpb": "0.5"}, None, None),
        ({"val_bpb": 10**400}, None, None),
    ],
)
def test_the_loss_is_the_last_finite_evaluation(
    tmp_path: Path, fields: dict[str, Any], loss: float | None, name: str | None
) -> None:
    found = read_text(tmp_path, json.dumps({"model_config": SIZES} | fields))
    assert (found.loss, found.loss_name) == (loss, name)


def test_a_meta_file_of_reinforcement_learning_has_only_the_shape(tmp_path: Path) -> None:
    assert read_text(tmp_path, json.dumps({"model_config": SIZES})).sizes == SIZES


def test_infinity_elsewhere_in_the_file_is_accepted(tmp_path: Path) -> None:
    content = meta(loop_state={"min_val_bpb": float("inf")})
    assert "Infinity" in json.dumps(content)
    assert read_text(tmp_path, json.dumps(content)).loss == 0.5


@pytest.mark.parametrize("value", [True, 2.0, "3", -1, 0, None, [3], 1 << 30, 10**30])
@pytest.mark.parametrize("name", sorted(SIZES))
def test_an_invalid_size_is_refused(tmp_path: Path, name: str, value: object) -> None:
    message = refusal(tmp_path, json.dumps({"model_config": SIZES | {name: value}}))
    assert f"`model_config.{name}` must be an integer from 1 to" in message
    assert json.dumps(value) in message


@pytest.mark.parametrize("name", sorted(SIZES))
def test_a_missing_size_is_named(tmp_path: Path, name: str) -> None:
    sizes = {key: value for key, value in SIZES.items() if key != name}
    assert f"`model_config` lacks {name}" in refusal(tmp_path, json.dumps({"model_config": sizes}))


def test_a_long_value_is_cut_in_the_message(tmp_path: Path) -> None:
    assert len(refusal(tmp_path, json.dumps({"model_config": SIZES | {"n_layer": "x" * 5000}}))) < 400


@pytest.mark.parametrize("pattern", ["", "SX", 3, ["S", "L"], True])
def test_a_window_pattern_of_other_letters_is_refused(tmp_path: Path, pattern: object) -> None:
    message = refusal(tmp_path, json.dumps({"model_config": SIZES | {"window_pattern": pattern}}))
    assert "window_pattern" in message
    assert json.dumps(pattern) in message


def test_letters_of_the_window_pattern_may_be_lower_case(tmp_path: Path) -> None:
    assert (
        read_text(tmp_path, json.dumps({"model_config": SIZES | {"window_pattern": "ssSl"}})).window_pattern == "SSSL"
    )


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "is not valid JSON"),
        ("{", "is not valid JSON"),
        ("[" * 100_000, "is not valid JSON"),
        ("[]", "is not a JSON object"),
        ("{}", "has no object `model_config`"),
        ('{"model_config": [1]}', "has no object `model_config`"),
        ('{"model_config": {"num_experts": 8, "top_k": 2}}', "mixture of experts"),
    ],
)
def test_a_file_without_a_shape_is_refused(tmp_path: Path, text: str, reason: str) -> None:
    assert reason in refusal(tmp_path, text)


def test_invalid_utf8_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "meta_000007.json"
    file.write_bytes(b'{"a": "\xff"}')
    with pytest.raises(CheckpointError, match="is not valid JSON"):
        read(file)


@pytest.mark.parametrize(
    ("sizes", "reason"),
    [
        ({"n_head": 5}, "n_embd 48 cannot be divided among n_head 5"),
        ({"n_kv_head": 3}, "n_head 4 cannot be divided among n_kv_head 3"),
        ({"n_head": 16, "n_kv_head": 16}, "rotary positions need an even count"),
    ],
)
def test_sizes_that_do_not_fit_together_are_refused_with_the_meta_file(
    tmp_path: Path, sizes: dict[str, Any], reason: str
) -> None:
    folder = write(tmp_path / "run", content=meta(**sizes))
    with pytest.raises(CheckpointError) as caught:
        load(find(str(folder), tmp_path))
    assert str(folder / "meta_000007.json") in str(caught.value)
    assert reason in str(caught.value)
