"""Answers are decoded token by token to what the library decodes at once: for hostile ids, and after any prompt."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders

from tests.unit.worker.checkpoints.tokenizers.kinds import byte_level, metaspace, text_of, unigram, without_deadline
from worker.checkpoints.tokenizers.huggingface import HuggingFaceTokenizer
from worker.checkpoints.tokenizers.huggingface_config import HuggingFaceConfig

VOCAB_SIZE = 320
#: SentencePiece's decoders, as the files of known models have them, and some that only the library allows.
DECODERS = {
    "llama": decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    ),
    "gemma": decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]),
    "metaspace": decoders.Metaspace(),
    "metaspace-never": decoders.Metaspace(prepend_scheme="never"),
    "bytes-metaspace": decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()]),
    "strip-three": decoders.Sequence([decoders.ByteFallback(), decoders.Fuse(), decoders.Strip("t", 3, 0)]),
    "late-replace": decoders.Sequence([decoders.ByteFallback(), decoders.Fuse(), decoders.Replace("▁", "__")]),
    "fuse": decoders.Fuse(),
}
#: A folder whose files name no ids that end a text.
OF_HUGGING_FACE = HuggingFaceConfig(stop_ids=frozenset())
KINDS = ["byte-level", "unigram", *DECODERS]


@cache
def library(kind: str) -> tokenizers.Tokenizer:
    if kind == "byte-level":
        found = tokenizers.Tokenizer.from_str(byte_level())
        found.add_tokens([AddedToken("<th é>", normalized=False), AddedToken("é", normalized=False)])
        return found
    if kind == "unigram":
        return tokenizers.Tokenizer.from_str(unigram())
    found = tokenizers.Tokenizer.from_str(metaspace())
    found.decoder = DECODERS[kind]
    return found


@cache
def tokenizer(kind: str) -> HuggingFaceTokenizer:
    return HuggingFaceTokenizer.from_json(library(kind).to_str().encode(), VOCAB_SIZE, OF_HUGGING_FACE)


#: Ids of all tokens, and of none: special ones, and padding.
ids = st.lists(st.integers(0, VOCAB_SIZE + 5), max_size=40)
texts = st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from("▁ the é😀\n"), max_size=20)


@st.composite
def answers(draw: st.DrawFn) -> list[int]:
    """Ids in which the bytes of characters are frequent: whole, cut, and mixed with other tokens."""
    single = {bytes([byte]): token_id for byte in range(256) if (token_id := byte_id(byte)) is not None}
    parts: list[int] = []
    for _ in range(draw(st.integers(0, 6))):
        raw = draw(st.sampled_from(["😀", "é", "▁", "東", "\n", " ", "\ud83d", "\x80", "\xff"]))
        data = raw.encode("utf-8", "surrogatepass") if ord(raw[0]) not in (0x80, 0xFF) else bytes([ord(raw)])
        parts += [single[bytes([byte])] for byte in data[draw(st.integers(0, 1)) : draw(st.integers(1, 4))]]
        parts += draw(st.lists(st.integers(0, VOCAB_SIZE), max_size=2))
    return parts


def byte_id(byte: int) -> int | None:
    return library("llama").token_to_id(f"<0x{byte:02X}>")


@pytest.mark.parametrize("kind", KINDS)
@without_deadline
@given(ids=ids | answers())
def test_the_pieces_together_are_what_the_library_decodes(kind: str, ids: list[int]) -> None:
    assert text_of(tokenizer(kind), ids) == library(kind).decode(ids, skip_special_tokens=True)


@pytest.mark.parametrize("kind", KINDS)
@without_deadline
@given(prompt=texts, ids=ids | answers())
def test_an_answer_is_the_rest_of_the_text_after_the_prompt(kind: str, prompt: str, ids: list[int]) -> None:
    given = [*library(kind).encode(prompt).ids]
    head, whole = (library(kind).decode(one, skip_special_tokens=True) for one in (given, [*given, *ids]))
    answer = text_of(tokenizer(kind), ids, given)
    if head.endswith("\ufffd") and not prompt.endswith("\ufffd"):
        # The prompt ends inside a character, which the answer completes or not.
        assert whole.endswith(answer)
    elif whole.startswith(head):
        assert head + answer == whole
    else:
        # Bytes of the answer made those of the prompt invalid, too.
        assert "<0x" in library(kind).id_to_token(given[-1])
        assert answer[:1] == "\ufffd"
        assert whole.endswith(answer)


@pytest.mark.parametrize("kind", KINDS)
@without_deadline
@given(ids=ids | answers(), cut=st.integers(0, 40))
def test_a_resumed_answer_has_the_same_pieces(kind: str, ids: list[int], cut: int) -> None:
    """A worker that continues an answer pushes the tokens that were decoded before."""
    whole, resumed = tokenizer(kind).decoder([1]), tokenizer(kind).decoder([1])
    pieces = [whole.push(one) for one in ids]
    for one in ids[:cut]:
        resumed.push(one)
    assert [resumed.push(one) for one in ids[cut:]] == pieces[cut:]
    assert resumed.finish() == whole.finish()


def pieces_of(kind: str, names: Sequence[str], prompt: Sequence[str] = ()) -> list[str]:
    """The pieces of tokens, and what finishes the answer."""
    decoder = tokenizer(kind).decoder([*map(library(kind).token_to_id, prompt)])
    return [*(decoder.push(library(kind).token_to_id(name)) for name in names), decoder.finish()]


def test_a_space_is_removed_from_the_beginning_of_the_text_and_not_from_that_of_an_answer() -> None:
    for kind in ("llama", "metaspace"):
        assert pieces_of(kind, ["▁th", "e", "▁t"]) == ["th", "e", " t", ""]
        assert pieces_of(kind, ["▁th", "e"], prompt=["<s>", "▁t"]) == [" th", "e", ""]
        # Special tokens are no text.
        assert pieces_of(kind, ["▁th", "e"], prompt=["<s>"]) == ["th", "e", ""]
    assert pieces_of("llama", ["▁", "▁th"]) == ["", " th", ""]
    assert pieces_of("gemma", ["▁th", "e"]) == [" th", "e", ""]


def test_bytes_that_follow_each_other_are_text_when_another_token_comes() -> None:
    smile = ["<0xF0>", "<0x9F>", "<0x98>", "<0x80>"]
    assert pieces_of("llama", [*smile, "t"]) == ["", "", "", "", "😀t", ""]
    assert pieces_of("llama", ["t", *smile]) == ["t", "", "", "", "", "😀"]
    # One byte that belongs to no character makes all of them invalid, as in the library.
    assert pieces_of("llama", [*smile, "<0x80>", "t"]) == ["", "", "", "", "", "\ufffd" * 5 + "t", ""]
    assert pieces_of("llama", smile[:3]) == ["", "", "", "\ufffd" * 3]


def test_a_special_token_between_two_bytes_does_not_part_them() -> None:
    assert pieces_of("llama", ["<0xC3>", "</s>", "<0xA9>"]) == ["", "", "", "é"]


def test_an_answer_may_complete_a_character_of_the_prompt() -> None:
    assert pieces_of("llama", ["<0xA9>", "t"], prompt=["t", "<0x0A>", "<0xC3>"]) == ["", "ét", ""]
    assert pieces_of("byte-level", ["©", "t"], prompt=["t", "Ã"]) == ["é", "t", ""]
    # What the prompt shows for a newline is not repeated.
    assert pieces_of("llama", ["<0x0A>", "t"], prompt=["t", "<0x0A>"]) == ["", "\nt", ""]


def test_an_answer_that_ends_inside_a_character_ends_with_a_replacement_character() -> None:
    assert pieces_of("byte-level", ["t", "Ã"]) == ["t", "", "\ufffd"]
    # Not in nanochat's folders.
    words = HuggingFaceTokenizer.from_json(byte_level().encode(), VOCAB_SIZE)
    assert text_of(words, [*map(library("byte-level").token_to_id, ["t", "Ã"])]) == "t"


def test_an_added_token_has_the_text_that_the_library_gives_it() -> None:
    # Its letters are bytes if all of them are in the alphabet of bytes.
    assert pieces_of("byte-level", ["<th é>"]) == ["<th é>", ""]
    assert pieces_of("byte-level", ["é", "t"]) == ["", "\ufffdt", ""]
