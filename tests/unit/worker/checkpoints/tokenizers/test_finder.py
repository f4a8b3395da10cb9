"""Where the file of a tokenizer is found."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.helpers.tokenizer_files import pickled
from tests.unit.worker.checkpoints.tokenizers.kinds import (
    GUIDE_CONFIG,
    VOCAB_SIZE,
    byte_level,
    folder_at,
)
from worker.checkpoints.errors import TokenizerError
from worker.checkpoints.tokenizers import load_tokenizer

FILES = {
    "tokenizer_config.json": (json.dumps(GUIDE_CONFIG | {"vocab_size": VOCAB_SIZE}).encode(), "characters"),
    "tokenizer.pkl": (pickled(), "tiktoken"),
    "tokenizer.json": (byte_level().encode(), "huggingface"),
}


@pytest.mark.parametrize("place", [".", "tokenizer", "../../tokenizer"])
@pytest.mark.parametrize("name", FILES)
def test_a_tokenizer_is_found_in_each_of_the_three_folders(tmp_path: Path, name: str, place: str) -> None:
    folder = folder_at(tmp_path / "base_checkpoints" / "d24")
    (folder.path / place).mkdir(parents=True, exist_ok=True)
    data, kind = FILES[name]
    (folder.path / place / name).write_bytes(data)
    assert load_tokenizer(folder, VOCAB_SIZE).kind == kind


def test_a_tokenizer_beside_the_weights_is_preferred(tmp_path: Path) -> None:
    folder = folder_at(tmp_path / "base_checkpoints" / "d24")
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / "tokenizer.pkl").write_bytes(b"broken, but far away")
    (folder.path / "tokenizer.json").write_bytes(byte_level().encode())
    assert load_tokenizer(folder, VOCAB_SIZE).kind == "huggingface"


def test_a_hugging_face_tokenizer_config_is_not_a_vocabulary(tmp_path: Path) -> None:
    folder = folder_at(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    (tmp_path / "tokenizer.json").write_bytes(byte_level().encode())
    assert load_tokenizer(folder, VOCAB_SIZE).kind == "huggingface"


def test_a_vocabulary_file_with_a_misspelt_key_is_refused_and_the_guides_vocabulary_is_not_used(tmp_path: Path) -> None:
    folder = folder_at(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"vocab_char": "0123"}')
    with pytest.raises(TokenizerError, match=r"tokenizer_config.json: has no `vocab_chars`"):
        load_tokenizer(folder, 32)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "is not valid JSON"),
        ("{", "is not valid JSON"),
        ("[]", "is not a JSON object"),
        ("[" * 100_000, "is not valid JSON"),
    ],
)
def test_a_vocabulary_file_that_is_not_a_json_object_is_refused(tmp_path: Path, text: str, reason: str) -> None:
    folder = folder_at(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(text)
    with pytest.raises(TokenizerError, match=f"tokenizer_config.json: {reason}"):
        load_tokenizer(folder, 32)


def test_without_a_file_only_a_model_of_32_ids_has_the_guides_vocabulary(tmp_path: Path) -> None:
    folder = folder_at(tmp_path / "runs" / "d24")
    assert load_tokenizer(folder, 32).encode("1+1").ids == (1, 10, 1)
    with pytest.raises(TokenizerError) as caught:
        load_tokenizer(folder, 33)
    assert str(folder.path) in str(caught.value)
    assert all(name in str(caught.value) for name in FILES)
