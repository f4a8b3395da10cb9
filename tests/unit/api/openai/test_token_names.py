"""What log-probabilities call a token."""

from __future__ import annotations

from api.openai.token_names import TokenNames
from tests.unit.api.openai.vocabulary import BOS, EURO, VOCABULARY


def test_a_token_is_called_by_its_text() -> None:
    names = TokenNames(VOCABULARY)
    assert [names.name(one) for one in (0, 1, BOS)] == ["a", "b", "<|bos|>"]
    assert (names.utf8(0), names.utf8(BOS)) == ([97], None)


def test_a_part_of_a_character_is_called_by_its_bytes() -> None:
    names = TokenNames(VOCABULARY)
    assert [names.name(one) for one in EURO] == ["bytes:\\xe2", "bytes:\\x82", "bytes:\\xac"]
    assert names.utf8(EURO[0]) == [0xE2]


def test_a_token_may_be_called_by_its_id() -> None:
    assert TokenNames(VOCABULARY, as_ids=True).name(0) == "token_id:0"
    assert TokenNames(None).name(5) == "token_id:5"
    assert TokenNames(None).utf8(5) is None


def test_pieces_complete_characters_and_skip_special_tokens() -> None:
    assert TokenNames(VOCABULARY).pieces([BOS, 0, *EURO, 1]) == ["", "a", "", "", "€", "b"]
    assert TokenNames(None).pieces([1, 2]) == ["", ""]
