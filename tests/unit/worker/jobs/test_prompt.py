"""The rules for a prompt, which the queue and `celeriac run` share."""

import pytest

from tasks.job import ErrorCode
from worker.checkpoints.tokenizers.characters import CharacterTokenizer
from worker.jobs.prompt import PromptError, answer_tokens, encode_prompt

REFUSING = CharacterTokenizer.from_config({"vocab_chars": "01+=", "special_tokens": ["<|bos|>"]}, 32)


def test_bos_comes_first_if_the_vocabulary_has_one() -> None:
    assert encode_prompt(REFUSING, "1+0=") == ((4, 1, 2, 0, 3), ())
    without = CharacterTokenizer.from_config({"vocab_chars": "01+="}, 32)
    assert encode_prompt(without, "1+0=") == ((1, 2, 0, 3), ())


def test_unknown_characters_cause_a_warning_with_the_vocabulary_of_the_guide() -> None:
    ids, warnings = encode_prompt(CharacterTokenizer.guide(), "1x")
    assert ids == (17, 1)
    assert "'x'" in warnings[0]


def test_an_unknown_character_is_otherwise_an_invalid_request_that_names_its_index() -> None:
    with pytest.raises(PromptError, match="'x' at index 1") as caught:
        encode_prompt(REFUSING, "1x")
    assert caught.value.code is ErrorCode.INVALID_REQUEST


def test_the_answer_is_cut_to_the_room_in_the_context() -> None:
    assert answer_tokens((1,) * 5, 3, context=8) == 3
    assert answer_tokens((1,) * 5, 4, context=8) == 3
    assert answer_tokens((1,) * 7, 100, context=8) == 1


def test_a_prompt_that_fills_the_context_is_too_long() -> None:
    with pytest.raises(PromptError, match="to at most 7 tokens") as caught:
        answer_tokens((1,) * 8, 1, context=8)
    assert caught.value.code is ErrorCode.PROMPT_TOO_LONG


def test_a_prompt_without_tokens_is_an_invalid_request() -> None:
    with pytest.raises(PromptError) as caught:
        answer_tokens((), 1, context=8)
    assert caught.value.code is ErrorCode.INVALID_REQUEST
