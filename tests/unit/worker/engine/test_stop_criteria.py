"""Stop criteria and the vocabulary."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.generation import FinishReason
from tests.helpers.requests import changed, sequence_request
from worker.engine.stop_criteria import StopCriteria, StopMatcher
from worker.engine.vocabulary import Vocabulary

#: Ids 0 to 4 have text, 5 is the stop id, 6 is padding.
VOCABULARY = Vocabulary(7, (b"a", b"ab", b"\n", b"c\nd", b"", None, None), frozenset({5}))


def finish_after(tokens: list[int], **fields: object) -> tuple[int, FinishReason | None]:
    """After how many tokens a text ends, and why; all tokens and None if it does not end."""
    fields.setdefault("max_tokens", 100)
    criteria = StopCriteria(sequence_request(id="s", prompt=(0,), **fields), VOCABULARY)  # type: ignore[arg-type]
    for count, token in enumerate(tokens, 1):
        if (finish := criteria.push(token)) is not None:
            return count, finish
    return len(tokens), None


@given(st.lists(st.binary(max_size=4)), st.lists(st.binary(min_size=1, max_size=3), min_size=1, max_size=3))
def test_a_stop_text_is_found_with_the_piece_that_completes_it(pieces: list[bytes], stops: list[bytes]) -> None:
    matcher = StopMatcher(tuple(stops))
    text = b""
    for piece in pieces:
        text += piece
        found = matcher.push(piece)
        assert found == any(stop in text for stop in stops)
        if found:
            break


def test_an_empty_stop_text_is_refused() -> None:
    with pytest.raises(ValueError, match="must not be empty"):
        StopMatcher((b"x", b""))


def test_a_stop_text_is_found_across_tokens_without_text() -> None:
    assert finish_after([0, 4, 6, 1, 0], stop=("aab",)) == (4, FinishReason.STOP)


def test_a_newline_ends_the_text_only_with_stop_on_newline() -> None:
    assert finish_after([0, 2, 0], stop_on_newline=True) == (2, FinishReason.NEWLINE)
    assert finish_after([0, 3, 0], stop_on_newline=True) == (2, FinishReason.NEWLINE)
    assert finish_after([0, 2, 3]) == (3, None)


def test_a_stop_text_takes_precedence_over_a_newline_and_both_over_the_length() -> None:
    assert finish_after([0, 2], stop_on_newline=True, stop=("a\n",), max_tokens=2) == (2, FinishReason.STOP)
    assert finish_after([0, 2], stop_on_newline=True, max_tokens=2) == (2, FinishReason.NEWLINE)
    assert finish_after([0, 0], max_tokens=2) == (2, FinishReason.LENGTH)


def test_with_ignore_eos_a_stop_id_does_not_end_the_text() -> None:
    request = sequence_request(id="s", prompt=(0,), max_tokens=9)
    assert StopCriteria(request, VOCABULARY).is_stop(5)
    assert not StopCriteria(request, VOCABULARY).is_stop(6)
    ignoring = sequence_request(id="s", prompt=(0,), max_tokens=9, ignore_eos=True)
    assert not StopCriteria(ignoring, VOCABULARY).is_stop(5)


def test_stop_token_ids_end_the_text_even_if_it_ignores_those_of_the_model() -> None:
    request = sequence_request(id="s", prompt=(0,), max_tokens=9, stop_token_ids=(1, 6))
    criteria = StopCriteria(request, VOCABULARY)
    assert [token for token in range(7) if criteria.is_stop(token)] == [1, 5, 6]
    ignoring = StopCriteria(changed(request, ignore_eos=True), VOCABULARY)
    assert [token for token in range(7) if ignoring.is_stop(token)] == [1, 6]


def test_before_min_tokens_neither_a_stop_text_nor_a_newline_ends_the_text() -> None:
    assert finish_after([0, 1, 0, 0, 0, 1], stop=("ab",), min_tokens=3) == (6, FinishReason.STOP)
    assert finish_after([0, 1, 0, 0, 0, 1], stop=("ab",), min_tokens=2) == (2, FinishReason.STOP)
    assert finish_after([2, 0, 2], stop_on_newline=True, min_tokens=2) == (3, FinishReason.NEWLINE)
    assert finish_after([0, 0, 0], min_tokens=9, max_tokens=2) == (2, FinishReason.LENGTH)


def test_a_stop_text_before_min_tokens_is_not_found_again_in_the_text_that_is_kept() -> None:
    assert finish_after([1, 0, 0, 0], stop=("ab", "xyzxyzxyz"), min_tokens=2) == (4, None)
    assert finish_after([0, 0, 0], stop=("aa",), min_tokens=3) == (3, FinishReason.STOP)


def test_candidates_are_ids_with_text_and_stop_ids() -> None:
    def ids(*, every_id: bool, ignore_eos: bool) -> list[int]:
        allowed = VOCABULARY.candidates(every_id=every_id, ignore_eos=ignore_eos)
        return [token for token, may in enumerate(allowed) if may]

    assert ids(every_id=False, ignore_eos=False) == [0, 1, 2, 3, 4, 5]
    assert ids(every_id=False, ignore_eos=True) == [0, 1, 2, 3, 4]
    assert ids(every_id=True, ignore_eos=False) == [0, 1, 2, 3, 4, 5, 6]
    assert ids(every_id=True, ignore_eos=True) == [0, 1, 2, 3, 4, 5, 6]


def test_a_vocabulary_that_contradicts_itself_is_refused() -> None:
    with pytest.raises(ValueError, match="has 3 ids but texts for 1"):
        Vocabulary(3, (b"a",))
    with pytest.raises(ValueError, match="not all between 0 and 0"):
        Vocabulary(1, (b"a",), frozenset({1}))
    with pytest.raises(ValueError, match="tool ids"):
        Vocabulary(1, (b"a",), tool_ids=frozenset({1}))
