"""nanochat's pickle: its ids, and that nothing in it runs."""

from __future__ import annotations

import os
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiktoken
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers.tokenizer_files import SPECIALS, TEXT_IDS, pickled
from tests.unit.worker.checkpoints.tokenizers.kinds import (
    VOCAB_SIZE,
    folder_at,
    tokenizer,
    without_deadline,
)
from worker.checkpoints.errors import TokenizerError
from worker.checkpoints.tokenizers import TokenizerFailedError, load_tokenizer
from worker.checkpoints.tokenizers.bpe import BpeTokenizer


def test_a_prompt_on_which_the_library_panics_is_an_ordinary_error() -> None:
    # The regular expression engine backtracks for ever and gives up, which is a panic in tiktoken.
    panicking = BpeTokenizer.from_pickle(pickled(pat_str=r"(a|aa)+\1$"), VOCAB_SIZE)
    assert panicking.encode("b").ids == ()
    for _ in range(2):
        with pytest.raises(TokenizerFailedError, match=r"tokenizer failed on the prompt \(.*BacktrackLimit"):
            panicking.encode("a" * 40 + "c")


def test_the_ids_are_those_of_the_pickled_encoding() -> None:
    words = tokenizer("tiktoken")
    encoding: tiktoken.Encoding = pickle.loads(pickled())
    assert pickle.loads(pickle.dumps(encoding)).special_tokens_set == encoding.special_tokens_set == set(SPECIALS)
    assert BpeTokenizer.from_pickle(pickle.dumps(encoding), VOCAB_SIZE).card() == words.card()
    text = "the 1234 thé 😀\n\n  x"
    assert list(words.encode(text).ids) == encoding.encode_ordinary(text)
    assert words.bos_id == TEXT_IDS
    assert words.stop_ids == {TEXT_IDS, TEXT_IDS + SPECIALS.index("<|assistant_end|>")}
    assert words.card().text_ids == TEXT_IDS


class _Evil:
    def __init__(self, call: Callable[..., object], *arguments: str) -> None:
        self._reduced = call, arguments

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str, ...]]:
        return self._reduced


@pytest.mark.parametrize("inside", [False, True])
def test_code_in_a_pickle_is_not_run(tmp_path: Path, inside: bool) -> None:
    folder, marker = folder_at(tmp_path / "run"), tmp_path / "was_here"
    evil = _Evil(os.mkdir, str(marker))
    file = folder.path / "tokenizer.pkl"
    file.write_bytes(pickle.dumps({"encoding": evil} if inside else evil))
    with pytest.raises(TokenizerError) as caught:
        load_tokenizer(folder, VOCAB_SIZE)
    assert str(caught.value).startswith(f"{file}: ")
    assert ".mkdir, which could run code" in str(caught.value)
    assert not marker.exists()


@pytest.mark.parametrize(
    "call",
    [_Evil(eval, "1"), _Evil(__import__, "antigravity"), _Evil(tiktoken.get_encoding, "gpt2"), tiktoken.Encoding],
)
def test_only_an_encoding_is_built(call: object) -> None:
    with pytest.raises(ValueError, match=r"could run code|holds no tiktoken\.Encoding"):
        BpeTokenizer.from_pickle(pickle.dumps(call), VOCAB_SIZE)
    assert "antigravity" not in sys.modules


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"mergeable_ranks": None}, "lacks mergeable_ranks or special_tokens"),
        ({"mergeable_ranks": {"a": 1}}, "lacks mergeable_ranks or special_tokens"),
        ({"mergeable_ranks": {b"a": True}}, "lacks mergeable_ranks or special_tokens"),
        ({"mergeable_ranks": {bytes([byte]): byte for byte in range(255)}}, "no token for the single byte 0xff"),
        ({"special_tokens": {b"<|bos|>": 300}}, "lacks mergeable_ranks or special_tokens"),
        ({"special_tokens": {"<|bos|>": 5}}, "two of its tokens have the same id"),
        ({"special_tokens": {"<|bos|>": -1}}, "negative"),
        ({"special_tokens": {"<|bos|>": VOCAB_SIZE}}, "it has 321 ids and the model has 320: it belongs to another"),
        ({"special_tokens": {"<|bos|>": 2**70}}, "it belongs to another model"),
        ({"pat_str": None}, "lacks pat_str"),
        ({"pat_str": "("}, "its split pattern cannot be used"),
    ],
)
def test_an_encoding_that_cannot_be_used_is_refused(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        BpeTokenizer.from_pickle(pickled(**changes), VOCAB_SIZE)


@pytest.mark.parametrize("kept", range(0, len(pickled()), 37))
def test_a_pickle_that_was_cut_off_is_refused(kept: int) -> None:
    with pytest.raises(ValueError, match=r"damaged|could run code|holds no"):
        BpeTokenizer.from_pickle(pickled()[:kept], VOCAB_SIZE)


@without_deadline
@given(offset=st.integers(0, len(pickled()) - 1), byte=st.integers(0, 255))
def test_a_damaged_pickle_is_either_refused_or_read(offset: int, byte: int) -> None:
    data = bytearray(pickled())
    data[offset] = byte
    try:
        card = BpeTokenizer.from_pickle(bytes(data), VOCAB_SIZE).card()
    except ValueError:
        return
    assert card.text_ids >= 256
