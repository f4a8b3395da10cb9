"""Vocabularies of single characters."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.unit.worker.checkpoints.tokenizers.kinds import (
    GUIDE_CONFIG,
    folder_at,
    tokenizer,
)
from worker.checkpoints.errors import TokenizerError
from worker.checkpoints.tokenizers import UnknownCharacterError, load_tokenizer
from worker.checkpoints.tokenizers.characters import CharacterTokenizer


def test_the_guides_vocabulary_is_that_of_its_code() -> None:
    words = CharacterTokenizer.guide()
    assert words.encode("0123456789+-HBL.\n").ids == tuple(range(17))
    assert (words.bos_id, words.prepend_bos, words.stop_ids) == (17, True, frozenset({17}))
    card = words.card()
    assert (card.kind, card.characters, card.unknown) == ("characters", "0123456789+-HBL.\n", "skip")


def test_the_guides_vocabulary_skips_unknown_characters_with_a_warning() -> None:
    encoding = CharacterTokenizer.guide().encode("12=x=3\ud800")
    assert encoding.ids == (1, 2, 3)
    assert encoding.skipped == ("=", "x", "\ud800")
    (warning,) = encoding.warnings
    assert "'=', 'x', '\\ud800'" in warning
    warning.encode()
    assert CharacterTokenizer.guide().encode("123").warnings == ()


def test_a_warning_of_many_characters_stays_short() -> None:
    (warning,) = CharacterTokenizer.guide().encode("".join(map(chr, range(0x4E00, 0x5000)))).warnings
    assert len(warning) < 300
    assert "and 502 more" in warning


def test_a_vocabulary_file_refuses_an_unknown_character_with_its_index() -> None:
    words = CharacterTokenizer.from_config(GUIDE_CONFIG, 32)
    assert words.encode("12=").ids == (1, 2, 12)
    with pytest.raises(UnknownCharacterError) as caught:
        words.encode("12*3")
    assert (caught.value.index, caught.value.character) == (2, "*")
    assert "'*' at index 2" in str(caught.value)
    assert words.card().unknown == "refuse"


def test_a_character_outside_the_basic_plane_counts_as_one() -> None:
    with pytest.raises(UnknownCharacterError) as caught:
        tokenizer("characters").encode("😀😀x")
    assert caught.value.index == 2


def test_special_tokens_come_after_the_characters_and_may_be_absent() -> None:
    words = CharacterTokenizer.from_config({"vocab_chars": "ab", "special_tokens": ["<|x|>", "<|bos|>"]}, 8)
    assert (words.bos_id, words.stop_ids) == (3, frozenset({3}))
    assert [words.token_bytes(i) for i in range(5)] == [b"a", b"b", None, None, None]
    bare = CharacterTokenizer.from_config({"vocab_chars": "ab"}, 2)
    assert (bare.bos_id, bare.prepend_bos, bare.stop_ids) == (None, False, frozenset())


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"vocab_chars": []}, "`vocab_chars` must be"),
        ({"vocab_chars": 7}, "`vocab_chars` must be"),
        ({"vocab_chars": {"a": 0}}, "`vocab_chars` must be"),
        ({"vocab_chars": ["a", "bc"]}, "single characters; 'bc' is not one"),
        ({"vocab_chars": ["a", 3]}, "single characters; 3 is not one"),
        ({"vocab_chars": ["a", ""]}, "single characters"),
        ({"vocab_chars": "aba"}, "`vocab_chars` has 'a' twice"),
        ({"vocab_chars": ["a", "\ud83d"]}, "half of a surrogate pair"),
        ({"special_tokens": "<|bos|>"}, "`special_tokens` must be"),
        ({"special_tokens": ["<|bos|>", "<|bos|>"]}, "`special_tokens` has '<|bos|>' twice"),
        ({"special_tokens": [3]}, "`special_tokens` must be"),
        ({"vocab_size": 33}, "`vocab_size` is 33 and the model's is 32"),
        ({"vocab_chars": [chr(65 + i) for i in range(32)]}, "more than the model's 32 ids"),
    ],
)
def test_an_invalid_vocabulary_file_is_refused(tmp_path: Path, changes: dict[str, Any], reason: str) -> None:
    folder = folder_at(tmp_path)
    file = tmp_path / "tokenizer_config.json"
    file.write_text(json.dumps(GUIDE_CONFIG | changes))
    with pytest.raises(TokenizerError) as caught:
        load_tokenizer(folder, 32)
    assert str(caught.value).startswith(f"{file}: ")
    assert reason in str(caught.value)
