"""What tokenizers of every kind have in common: encoding, decoding, special ids and bounds."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.library_errors import library_errors
from tests.unit.worker.checkpoints.tokenizers.kinds import (
    ALL,
    OPEN,
    VOCAB_SIZE,
    decoded,
    text_of,
    tokenizer,
    without_deadline,
)
from worker.checkpoints.tokenizers import UnknownCharacterError


@pytest.mark.parametrize("kind", OPEN)
@without_deadline
@given(text=st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from("the é😀\n"), max_size=40))
def test_the_tokens_of_a_text_are_decoded_to_the_text(kind: str, text: str) -> None:
    words = tokenizer(kind)
    encoding = words.encode(text)
    assert encoding.skipped == ()
    assert text_of(words, encoding.ids) == text


@without_deadline
@given(text=st.text("01é😀=\n", max_size=20))
def test_a_text_of_characters_has_one_token_each(text: str) -> None:
    words = tokenizer("characters")
    assert len(words.encode(text).ids) == len(text)
    assert decoded(words, words.encode(text).ids) == list(text)


@pytest.mark.parametrize("kind", ["guide", "characters", "tiktoken", "byte-level"])
@without_deadline
@given(ids=st.lists(st.integers(0, VOCAB_SIZE + 5), max_size=60))
def test_decoding_token_by_token_gives_the_same_as_decoding_all(kind: str, ids: list[int]) -> None:
    """Random ids are mostly invalid UTF-8. The digit after them ends an incomplete character."""
    words = tokenizer(kind)
    ids = [*ids, *words.encode("1").ids[-1:]]
    whole = b"".join(words.token_bytes(token_id) or b"" for token_id in ids)
    assert "".join(decoded(words, ids)) == whole.decode("utf-8", errors="replace")


@pytest.mark.parametrize("kind", ["tiktoken", "byte-level"])
@without_deadline
@given(character=st.characters(exclude_categories=["Cs"]), data=st.data())
def test_a_character_of_several_tokens_appears_at_once(kind: str, character: str, data: st.DataObject) -> None:
    words = tokenizer(kind)
    single = {words.token_bytes(i): i for i in range(VOCAB_SIZE) if len(words.token_bytes(i) or b"") == 1}
    pieces = decoded(words, [single[bytes([byte])] for byte in character.encode()])
    assert pieces == [""] * (len(character.encode()) - 1) + [character]


@pytest.mark.parametrize("kind", OPEN)
@without_deadline
@given(text=st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from("the é😀\n"), max_size=60))
def test_the_card_never_counts_more_tokens_than_a_text_has(kind: str, text: str) -> None:
    words = tokenizer(kind)
    card = words.card()
    assert card.least_prompt_tokens(text) <= len(words.encode(text).ids) + card.prepend_bos
    assert card.longest_token_bytes == {"tiktoken": 4, "byte-level": 3, "metaspace": None}[kind]


@pytest.mark.parametrize("kind", ["tiktoken", "byte-level"])
def test_two_sequences_are_decoded_independently(kind: str) -> None:
    words = tokenizer(kind)
    single = {words.token_bytes(i): i for i in range(VOCAB_SIZE)}
    first, second = words.decoder(), words.decoder()
    assert [first.push(single[b"\xc3"]), second.push(single[b"!"]), first.push(single[b"\xa9"])] == ["", "!", "é"]


@pytest.mark.parametrize("kind", ["tiktoken", "byte-level"])
def test_the_names_of_special_tokens_in_a_prompt_are_ordinary_text(kind: str) -> None:
    words = tokenizer(kind)
    text = "a<|bos|>b<|assistant_end|>"
    ids = words.encode(text).ids
    assert all(words.token_bytes(token_id) is not None for token_id in ids)
    assert "".join(decoded(words, ids)) == text


def test_the_names_of_special_tokens_are_ordinary_text_in_sentencepiece_too() -> None:
    words = tokenizer("metaspace")
    ids = words.encode("</s>t<s>").ids
    assert not words.stop_ids & set(ids)
    assert text_of(words, ids) == "</s>t<s>"


@pytest.mark.parametrize("kind", ALL)
def test_special_and_padding_ids_have_no_text(kind: str) -> None:
    words = tokenizer(kind)
    specials = {*words.stop_ids, words.bos_id}
    assert all(token_id is not None and words.token_bytes(token_id) is None for token_id in specials)
    assert words.token_bytes(VOCAB_SIZE - 1) is None
    assert words.token_bytes(-1) is None
    with_text = [token_id for token_id in range(VOCAB_SIZE) if words.token_bytes(token_id) is not None]
    assert len(with_text) == words.card().text_ids


@pytest.mark.parametrize("kind", ["characters", *OPEN])
@pytest.mark.parametrize(("text", "index"), [("\ud83d", 0), ("0=\udc00", 2), ("=\ude00\ud83d", 1)])
def test_a_lone_surrogate_is_refused_with_its_index(kind: str, text: str, index: int) -> None:
    with pytest.raises(UnknownCharacterError) as caught:
        tokenizer(kind).encode(text)
    assert (caught.value.index, caught.value.character) == (index, text[index])
    str(caught.value).encode()


@pytest.mark.parametrize("kind", ALL)
def test_an_empty_text_has_no_tokens(kind: str) -> None:
    assert tokenizer(kind).encode("").ids == ()


@pytest.mark.parametrize("kind", OPEN)
def test_a_million_spaces_can_be_encoded(kind: str) -> None:
    text = " " * 1_000_000
    words = tokenizer(kind)
    assert sum(len(words.token_bytes(i) or b"") for i in words.encode(text).ids) >= len(text)


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, MemoryError])
def test_what_is_no_failure_of_the_library_passes(error: type[BaseException]) -> None:
    with pytest.raises(error), library_errors():
        raise error


def test_tokenizers_do_not_import_torch() -> None:
    program = "import sys, worker.checkpoints.tokenizers, worker.checkpoints.folder; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
