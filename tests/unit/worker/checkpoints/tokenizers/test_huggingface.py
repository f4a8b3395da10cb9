"""`tokenizer.json`: its ids, special tokens and bounds, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers

from tests.unit.worker.checkpoints.tokenizers.kinds import (
    VOCAB_SIZE,
    byte_level,
    decoded,
    folder_at,
    metaspace,
    tokenizer,
)
from worker.checkpoints.errors import TokenizerError
from worker.checkpoints.tokenizers import TokenizerFailedError, UnknownCharacterError, load_tokenizer
from worker.checkpoints.tokenizers.huggingface import HuggingFaceTokenizer


@pytest.mark.parametrize(
    "part",
    [
        {"normalizer": {"type": "StripAccents"}},
        {"pre_tokenizer": {"type": "Whitespace"}},
        {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "ByteLevel"}, {"type": "Whitespace"}]}},
        {"pre_tokenizer": {"type": "Split", "pattern": {"String": " "}, "behavior": "Removed", "invert": False}},
    ],
)
def test_a_tokenizer_that_may_shorten_a_text_has_no_bound(part: dict[str, Any]) -> None:
    content = json.loads(byte_level())
    assert HuggingFaceTokenizer.from_json(json.dumps(content).encode(), VOCAB_SIZE).card().longest_token_bytes == 3
    for divider in part.get("pre_tokenizer", {}).get("pretokenizers", []):
        if divider["type"] == "ByteLevel":
            divider |= content["pre_tokenizer"]
    changed = HuggingFaceTokenizer.from_json(json.dumps(content | part).encode(), VOCAB_SIZE)
    assert changed.card().longest_token_bytes is None
    assert changed.card().least_prompt_tokens("1" * 10_000_000) == 0


def test_an_added_token_that_takes_the_spaces_beside_it_leaves_no_bound() -> None:
    words = tokenizers.Tokenizer.from_str(byte_level())
    words.add_tokens([AddedToken("<sep>", lstrip=True)])
    assert HuggingFaceTokenizer.from_json(words.to_str().encode(), VOCAB_SIZE).card().longest_token_bytes is None


def test_a_prompt_that_the_hugging_face_library_cannot_encode_is_an_ordinary_error() -> None:
    tokenizer = tokenizers.Tokenizer(models.WordLevel(vocab={"a": 0}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.Fuse()
    failing = HuggingFaceTokenizer.from_json(tokenizer.to_str().encode(), 8)
    with pytest.raises(TokenizerFailedError, match="UNK"):
        failing.encode("b")


def test_byte_level_ids_are_the_librarys() -> None:
    library = tokenizers.Tokenizer.from_str(byte_level())
    text = "the 1234 thé 😀\n\n  x"
    ids = tokenizer("byte-level").encode(text).ids
    assert list(ids) == library.encode(text).ids
    assert "".join(decoded(tokenizer("byte-level"), ids)) == library.decode(ids) == text
    assert tokenizer("byte-level").bos_id == library.token_to_id("<|bos|>")


def test_the_id_for_unknown_text_has_no_text() -> None:
    assert tokenizer("metaspace").token_bytes(0) is None


def test_truncation_padding_and_dropout_are_turned_off() -> None:
    library = tokenizers.Tokenizer.from_str(byte_level())
    library.enable_truncation(2)
    library.enable_padding(length=50)
    content = json.loads(library.to_str())
    content["model"]["dropout"] = 0.9
    words = HuggingFaceTokenizer.from_json(json.dumps(content).encode(), VOCAB_SIZE)
    assert words.encode("the the the").ids == tokenizer("byte-level").encode("the the the").ids


def test_added_tokens_that_are_not_special_have_text() -> None:
    library = tokenizers.Tokenizer.from_str(byte_level())
    library.add_tokens([AddedToken("very long word", normalized=False)])
    words = HuggingFaceTokenizer.from_json(library.to_str().encode(), VOCAB_SIZE)
    ids = words.encode("a very long word").ids
    assert len(ids) == 3
    assert "".join(decoded(words, ids)) == "a very long word"


@pytest.mark.parametrize("unknown", [None, "<unk>"])
def test_a_vocabulary_without_all_bytes_refuses_what_it_cannot_spell(unknown: str | None) -> None:
    library = tokenizers.Tokenizer(models.BPE(vocab={"a": 0, "b": 1, "<unk>": 2}, merges=[], unk_token=unknown))
    library.decoder = decoders.Fuse()
    words = HuggingFaceTokenizer.from_json(library.to_str().encode(), 8)
    assert words.encode("abba").ids == (0, 1, 1, 0)
    with pytest.raises(UnknownCharacterError) as caught:
        words.encode("abxby")
    assert (caught.value.index, caught.value.character) == (2, "x")


def changed_json(**fields: Any) -> bytes:
    return json.dumps(json.loads(byte_level()) | fields).encode()


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "the tokenizers library cannot read it"),
        (b"{}", "the tokenizers library cannot read it"),
        (b"\xff", "the tokenizers library cannot read it"),
        (b'{"version": "1.0"}', "the tokenizers library cannot read it"),
        (changed_json(decoder=None), "its decoder is of type None"),
        (changed_json(decoder=json.loads(decoders.WordPiece().__getstate__())), "its decoder is of type WordPiece"),
        (
            changed_json(decoder={"type": "Replace", "pattern": {"Regex": "a+"}, "content": " "}),
            "regular expression, which is not supported",
        ),
    ],
)
def test_a_tokenizer_json_that_cannot_be_used_is_refused(tmp_path: Path, data: bytes, reason: str) -> None:
    folder = folder_at(tmp_path)
    (tmp_path / "tokenizer.json").write_bytes(data)
    with pytest.raises(TokenizerError) as caught:
        load_tokenizer(folder, VOCAB_SIZE)
    assert str(caught.value).startswith(f"{tmp_path / 'tokenizer.json'}: ")
    assert reason in str(caught.value)


def test_a_tokenizer_larger_than_the_model_is_refused() -> None:
    with pytest.raises(ValueError, match="it has 268 ids and the model has 267: it belongs to another model"):
        HuggingFaceTokenizer.from_json(byte_level().encode(), 267)
    assert HuggingFaceTokenizer.from_json(byte_level().encode(), 268).card().text_ids == 259


@pytest.mark.parametrize("spelled", ['"<unk>"', '{"content": "<unk>", "special": true}'])
def test_the_tokenizer_config_may_name_the_token_that_ends_a_text(tmp_path: Path, spelled: str) -> None:
    folder = folder_at(tmp_path)
    (tmp_path / "tokenizer.json").write_text(metaspace())
    without = load_tokenizer(folder, VOCAB_SIZE)
    (tmp_path / "tokenizer_config.json").write_text(f'{{"eos_token": {spelled}}}')
    assert load_tokenizer(folder, VOCAB_SIZE).stop_ids - without.stop_ids == {
        tokenizers.Tokenizer.from_str(metaspace()).token_to_id("<unk>")
    }


def test_an_eos_token_that_is_not_in_the_vocabulary_is_refused(tmp_path: Path) -> None:
    folder = folder_at(tmp_path)
    (tmp_path / "tokenizer.json").write_text(metaspace())
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "<|none|>"}')
    with pytest.raises(TokenizerError, match="is not in it"):
        load_tokenizer(folder, VOCAB_SIZE)
