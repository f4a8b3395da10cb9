"""The parts that all tokenizers share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from tasks.card import TokenizerCard
from worker.checkpoints.chat.base import ChatTemplate
from worker.checkpoints.errors import listed
from worker.engine.tools.tool_content import ToolContent
from worker.engine.tools.tool_ids import ToolIds

#: Names of special tokens that begin or end a text, in nanochat and in similar projects.
BOS_TOKEN = "<|bos|>"
STOP_TOKENS = (BOS_TOKEN, "<|assistant_end|>", "<|endoftext|>", "<|eos|>", "</s>")
#: The same, the ones that only end a text first.
_EOS_TOKENS = (*STOP_TOKENS[1:], BOS_TOKEN)
#: Every character that a number has, as Python writes it.
_RESULT_CHARACTERS = "0123456789+-.e"
#: The largest number of skipped characters that a warning names.
_NAMED = 10


class UnknownCharacterError(Exception):
    """A prompt has a character that is not in the vocabulary."""

    def __init__(self, index: int, character: str) -> None:
        super().__init__(
            f"The prompt's character {character!r} at index {index} is not in this checkpoint's vocabulary, "
            "which `celeriac inspect` prints."
        )
        self.index = index
        self.character = character


class TokenizerFailedError(Exception):
    """The tokenizer's library cannot encode a prompt. It fails again with the same prompt."""

    def __init__(self, reason: str) -> None:
        super().__init__(
            f"This checkpoint's tokenizer failed on the prompt ({reason}). Shorten the prompt, or remove long runs of "
            "one character from it."
        )


@dataclass(frozen=True, slots=True)
class Encoding:
    """A prompt as token ids, without BOS."""

    ids: tuple[int, ...]
    #: Characters that were left out: each once, in the order of their first appearance.
    skipped: tuple[str, ...] = ()

    @property
    def warnings(self) -> tuple[str, ...]:
        """Warnings for the user who sent the prompt."""
        if not self.skipped:
            return ()
        skipped = listed(map(repr, self.skipped), _NAMED)
        return (f"Characters that are not in the vocabulary were left out of the prompt: {skipped}",)


class Decoder(Protocol):
    """Decodes the tokens of one answer, one after the other."""

    def push(self, token_id: int) -> str:
        """Add a token. Returns the text that it completes, never a part of a character.

        Bytes become U+FFFD as soon as it is certain that they are not valid UTF-8.
        """
        ...

    def finish(self) -> str:
        """The text that was held back, because the answer is over."""
        ...


class Tokenizer(Protocol):
    """Encodes prompts and decodes answers. Ids without text are special tokens and padding."""

    @property
    def kind(self) -> str: ...

    @property
    def bos_id(self) -> int | None: ...

    @property
    def prepend_bos(self) -> bool:
        """Whether every prompt that is a text must begin with BOS."""
        ...

    @property
    def stop_ids(self) -> frozenset[int]:
        """Ids with which the model ends a text."""
        ...

    @property
    def special_ids(self) -> Mapping[str, int]:
        """The ids of the special tokens by their names."""
        ...

    @property
    def tool_ids(self) -> ToolIds | None:
        """The special tokens around the input and the output of nanochat's calculator. None: there are none."""
        ...

    @property
    def chat(self) -> ChatTemplate | None:
        """How messages become a prompt. None: the checkpoint cannot chat."""
        ...

    def encode(self, text: str) -> Encoding:
        """The token ids of a prompt. Names of special tokens in it are ordinary text.

        Raises UnknownCharacterError and TokenizerFailedError.
        """
        ...

    def token_bytes(self, token_id: int) -> bytes | None:
        """The UTF-8 bytes of an id, which may be a part of a character. None if the id has no text."""
        ...

    def decoder(self, prompt: Sequence[int] = ()) -> Decoder:
        """A new decoder, for the answer to a prompt."""
        ...

    def card(self) -> TokenizerCard:
        """The description of the tokenizer for front ends."""
        ...

    def to_huggingface(self) -> dict[str, Any]:
        """The content of a `tokenizer.json` that gives the same ids, without BOS. Names of special tokens in a text
        are special tokens there."""
        ...


def visible_text(tokenizer: Tokenizer, token_ids: Sequence[int]) -> str:
    """The text of ids. An id without text gives U+FFFD, as do bytes that are not UTF-8."""
    parts = (tokenizer.token_bytes(token_id) for token_id in token_ids)
    return b"".join("\ufffd".encode() if part is None else part for part in parts).decode("utf-8", "replace")


def tool_content_of(tokenizer: Tokenizer) -> ToolContent | None:
    """What tells the text of an answer from tool content; None if the checkpoint knows no tool."""
    if tokenizer.tool_ids is None:
        return None
    return ToolContent(tokenizer.tool_ids, partial(visible_text, tokenizer))


def eos_id_of(special_ids: Mapping[str, int]) -> int | None:
    """The special token that ends an answer, by its name; None if there is none."""
    return next((special_ids[name] for name in _EOS_TOKENS if name in special_ids), None)


def tool_ids_of(special_ids: Mapping[str, int], encode: Callable[[str], object]) -> ToolIds | None:
    """The special tokens of nanochat's calculator. None if one is missing, or if `encode` refuses its results."""
    try:
        encode(_RESULT_CHARACTERS)
    except (UnknownCharacterError, TokenizerFailedError):
        return None
    return ToolIds.of(special_ids)


def refuse_surrogates(text: str) -> None:
    """Raise UnknownCharacterError for a lone surrogate. It is not a character, and cannot be encoded as UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UnknownCharacterError(error.start, text[error.start]) from None
