"""Messages in nanochat's layout, with tokenizers of each format, and the messages that are refused."""

from __future__ import annotations

import re

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers

from tasks.chat import Message
from tests.helpers.tokenizer_files import SPECIALS, TEXT_IDS, pickled
from worker.checkpoints.chat import ChatError
from worker.checkpoints.tokenizers import Tokenizer, UnknownCharacterError, visible_text
from worker.checkpoints.tokenizers.bpe import BpeTokenizer
from worker.checkpoints.tokenizers.characters import CharacterTokenizer
from worker.checkpoints.tokenizers.huggingface import HuggingFaceTokenizer

VOCAB_SIZE = 320
BOS, USER, USER_END, ASSISTANT, ASSISTANT_END, PYTHON, PYTHON_END, OUTPUT, OUTPUT_END = range(TEXT_IDS, TEXT_IDS + 9)


def hugging_face() -> Tokenizer:
    vocabulary = {letter: i for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    vocabulary |= {f"unused {i}": i for i in range(256, TEXT_IDS)}
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(SPECIALS)
    return HuggingFaceTokenizer.from_json(tokenizer.to_str().encode(), VOCAB_SIZE)


@pytest.fixture(params=["tiktoken", "huggingface"], scope="module")
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return BpeTokenizer.from_pickle(pickled(), VOCAB_SIZE) if request.param == "tiktoken" else hugging_face()


def talk(*contents: str, system: str | None = None) -> list[Message]:
    """The user and the assistant in turn."""
    first = [] if system is None else [Message("system", system)]
    return first + [Message("assistant" if i % 2 else "user", content) for i, content in enumerate(contents)]


def rendered(tokenizer: Tokenizer, messages: list[Message]) -> tuple[int, ...]:
    assert tokenizer.chat is not None
    return tokenizer.chat.render(messages)


def ids(tokenizer: Tokenizer, text: str) -> tuple[int, ...]:
    return tokenizer.encode(text).ids


def test_one_question(tokenizer: Tokenizer) -> None:
    assert rendered(tokenizer, talk("the end")) == (BOS, USER, *ids(tokenizer, "the end"), USER_END, ASSISTANT)


def test_a_longer_talk(tokenizer: Tokenizer) -> None:
    one, two, three = (ids(tokenizer, text) for text in ("one", "two", "three"))
    assert rendered(tokenizer, talk("one", "two", "three")) == (
        *(BOS, USER, *one, USER_END, ASSISTANT, *two, ASSISTANT_END),
        *(USER, *three, USER_END, ASSISTANT),
    )


@pytest.mark.parametrize("role", ["system", "developer"])
def test_a_system_message_joins_the_first_question(tokenizer: Tokenizer, role: str) -> None:
    messages = [Message(role, "Be brief."), *talk("Hello", "Hi", "Why?")]
    assert rendered(tokenizer, messages) == rendered(tokenizer, talk("Be brief.\n\nHello", "Hi", "Why?"))


def test_an_empty_content_is_a_message_like_any_other(tokenizer: Tokenizer) -> None:
    assert rendered(tokenizer, talk("")) == (BOS, USER, USER_END, ASSISTANT)
    assert rendered(tokenizer, talk("", system="")) == rendered(tokenizer, talk("\n\n"))


@settings(deadline=None)
@given(st.lists(st.sampled_from(SPECIALS) | st.text(st.characters(exclude_categories=["Cs"]))).map("".join))
def test_names_of_special_tokens_in_a_message_are_text(content: str) -> None:
    tokenizer = BpeTokenizer.from_pickle(pickled(), VOCAB_SIZE)
    result = rendered(tokenizer, talk(content))
    assert (result[:2], result[-2:]) == ((BOS, USER), (USER_END, ASSISTANT))
    assert visible_text(tokenizer, result[2:-2]) == content
    assert max(result[2:-2], default=0) < TEXT_IDS


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        ([], "messages is empty"),
        ([("system", "x")], "messages[1] must come from the user"),
        ([("system", "x"), ("assistant", "y")], "messages[1] must come from the user"),
        ([("assistant", "x")], "messages[0] has the role assistant and must have user"),
        ([("user", "x"), ("user", "y")], "messages[1] has the role user and must have assistant"),
        ([("system", "x"), ("user", "y"), ("user", "z")], "messages[2] has the role user and must have assistant"),
        ([("user", "x"), ("assistant", "y")], "The last message must come from the user"),
        ([("user", "x"), ("system", "y"), ("user", "z")], "messages[1] has the role system, which only the first"),
        ([("system", "x"), ("developer", "y"), ("user", "z")], "messages[1] must come from the user"),
        ([("user", "x"), ("tool", "y")], "messages[1] has the role tool: messages of tools are not supported"),
        ([("User", "x")], "messages[0] has the unknown role 'User'; roles are system, developer, user and assistant"),
        ([("x" * 10_000, "x")], "messages[0] has the unknown role 'xxx"),
    ],
)
def test_other_orders_and_roles_are_refused(tokenizer: Tokenizer, messages: list[tuple[str, str]], words: str) -> None:
    with pytest.raises(ChatError, match=re.escape(words)) as error:
        rendered(tokenizer, [Message(*one) for one in messages])
    assert len(str(error.value)) < 300


def test_half_of_a_surrogate_pair_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(UnknownCharacterError):
        rendered(tokenizer, talk("a\ud800"))


def test_cards_say_what_the_special_tokens_allow() -> None:
    card = BpeTokenizer.from_pickle(pickled(), VOCAB_SIZE).card()
    assert (card.chat, card.calculator, card.eos_id) == ("nanochat", True, ASSISTANT_END)
    without_tool = CharacterTokenizer("01+", SPECIALS[:8], unknown="refuse").card()
    assert (without_tool.chat, without_tool.calculator, without_tool.eos_id) == ("nanochat", False, 7)
    # A calculator whose results cannot be written is none.
    assert not CharacterTokenizer("01+", SPECIALS, unknown="refuse").card().calculator
    assert CharacterTokenizer("0123456789+-.e", SPECIALS, unknown="refuse").card().calculator
    guide = CharacterTokenizer.guide().card()
    assert (guide.chat, guide.calculator, guide.eos_id) == (None, False, 17)
    neither = CharacterTokenizer("01+", [], unknown="refuse").card()
    assert (neither.chat, neither.calculator, neither.eos_id) == (None, False, None)


def test_characters_can_chat_if_they_have_the_special_tokens() -> None:
    characters = CharacterTokenizer("01+", SPECIALS, unknown="refuse")
    assert rendered(characters, talk("1+0")) == (3, 4, 1, 2, 0, 5, 6)
    with pytest.raises(UnknownCharacterError):
        rendered(characters, talk("1-0"))
