"""What the files of a Hugging Face model say about the ends of a text and about sampling."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from worker.checkpoints.errors import CheckpointError, TokenizerError
from worker.checkpoints.generation_config import GenerationConfig

VOCAB_SIZE = 100


def read(folder: Path, generation: Any = None, model: Any = None) -> GenerationConfig:
    for name, content in (("generation_config.json", generation), ("config.json", model)):
        if content is not None:
            (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))
    return GenerationConfig.read(folder, VOCAB_SIZE)


def sampling(folder: Path, **fields: Any) -> dict[str, float]:
    return dict(read(folder, fields).sampling)


def test_the_ids_of_both_files_end_a_text(tmp_path: Path) -> None:
    assert read(tmp_path) == GenerationConfig(stop_ids=frozenset(), sampling={})
    assert read(tmp_path, model={"eos_token_id": 2}).stop_ids == {2}
    assert read(tmp_path, {"eos_token_id": [1, 4]}).stop_ids == {1, 2, 4}
    assert read(tmp_path, {"eos_token_id": None}, {"eos_token_id": [99]}).stop_ids == {99}


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (100, "`eos_token_id` 100 is not one of the model's ids, which are 0 to 99"),
        ([1, 1 << 70], "is not one of the model's ids"),
        (-1, "`eos_token_id` -1 is not one of the model's ids"),
        ("</s>", '`eos_token_id` must be a token id or a list of them, and "</s>" is none'),
        (True, "and true is none"),
        ([1, [2]], r"and \[2\] is none"),
        (2.0, "and 2.0 is none"),
        ({}, "and {} is none"),
        (list(range(2)) * 600, "has 1200 ids, more than 1000"),
    ],
)
@pytest.mark.parametrize("file", ["generation_config.json", "config.json"])
def test_other_ids_are_refused_and_named(tmp_path: Path, file: str, found: Any, words: str) -> None:
    (tmp_path / file).write_text(json.dumps({"eos_token_id": found}))
    with pytest.raises(TokenizerError, match=f"/{file}: its {'' if words.startswith('`') else '.*'}{words}"):
        read(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", "\udc80"])
def test_a_damaged_file_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "generation_config.json").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(TokenizerError, match=r"/generation_config\.json: is not"):
        read(tmp_path)


def test_a_link_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "secret.json").write_text("{}")
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "generation_config.json").symlink_to(tmp_path / "secret.json")
    with pytest.raises(CheckpointError, match="link that leads out of this folder"):
        read(folder)


def test_the_sampling_fields_of_the_api_are_taken(tmp_path: Path) -> None:
    found = {"temperature": 0.6, "top_k": 20, "top_p": 0.95, "min_p": 0.1, "repetition_penalty": 1.1}
    others = {"do_sample": True, "max_new_tokens": 9, "typical_p": 0.5, "seed": 1, "stop": ["x"], "logprobs": 5}
    assert sampling(tmp_path, **found, **others) == found
    # Those of the model's own file are not: transformers has moved them to the other one.
    assert read(tmp_path, {}, {"temperature": 0.6}).sampling == {}


def test_as_in_vllm_greedy_decoding_is_no_default(tmp_path: Path) -> None:
    assert sampling(tmp_path, do_sample=False) == {}
    assert sampling(tmp_path, do_sample=False, temperature=0.6) == {"temperature": 0.6}
    # But a temperature of 0 is one.
    assert sampling(tmp_path, temperature=0) == {"temperature": 0}


@pytest.mark.parametrize(
    "neutral",
    [
        {"temperature": 1.0, "top_p": 1, "min_p": 0, "repetition_penalty": 1.0},
        {"temperature": None, "top_k": None, "top_p": None},
        {"top_k": 0},
        {"top_k": -1},
        {"top_k": 100},
        {"top_k": 10**400},
    ],
)
def test_what_changes_nothing_is_left_out(tmp_path: Path, neutral: dict[str, Any]) -> None:
    assert sampling(tmp_path, **neutral) == {}


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"temperature": "hot"}, '`temperature` must be a number, not "hot"'),
        ({"temperature": True}, "`temperature` must be a number, not true"),
        ({"top_p": [0.5]}, r"`top_p` must be a number, not \[0.5\]"),
        ({"top_k": 1.5}, "`top_k` must be a whole number, not 1.5"),
        ({"temperature": 5}, "`temperature` is 5, which no request may have"),
        ({"top_p": 0}, "`top_p` is 0, which no request may have"),
        ({"top_p": 1.5}, "`top_p` is 1.5, which no request may have"),
        ({"min_p": -0.1}, "`min_p` is -0.1, which no request may have"),
        ({"repetition_penalty": 0}, "`repetition_penalty` is 0, which no request may have"),
    ],
)
def test_a_value_that_no_request_may_have_is_refused(tmp_path: Path, fields: dict[str, Any], words: str) -> None:
    with pytest.raises(TokenizerError, match=f"/generation_config.json: its {words}"):
        sampling(tmp_path, **fields)


@pytest.mark.parametrize("number", ["NaN", "Infinity"])
def test_a_number_that_is_not_finite_is_refused(tmp_path: Path, number: str) -> None:
    with pytest.raises(TokenizerError, match=f"`temperature` must be a number, not {number}"):
        read(tmp_path, f'{{"temperature": {number}}}')
