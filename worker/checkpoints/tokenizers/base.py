"""What every tokenizer can do."""

from __future__ import annotations

import codecs
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from tasks.card import TokenizerCard

#: Special tokens that begin or end a text, by the names that nanochat and its relatives give them.
BOS_TOKEN = "<|bos|>"
STOP_TOKENS = (BOS_TOKEN, "<|assistant_end|>", "<|endoftext|>", "<|eos|>", "</s>")
#: Skipped characters that a warning names.
_NAMED = 10


class UnknownCharacterError(Exception):
    """A prompt has a character that the vocabulary lacks."""

    def __init__(self, index: int, character: str) -> None:
        super().__init__(
            f"The prompt's character {character!r} at index {index} is not in this checkpoint's vocabulary."
        )
        self.index = index
        self.character = character


@dataclass(frozen=True, slots=True)
class Encoding:
    """A prompt as token ids, without BOS."""

    ids: tuple[int, ...]
    #: Characters that were left out, each once, in order of appearance.
    skipped: tuple[str, ...] = ()

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the sender of the prompt should know."""
        if not self.skipped:
            return ()
        listed = ", ".join(repr(character) for character in self.skipped[:_NAMED])
        more = f" and {len(self.skipped) - _NAMED} more" if len(self.skipped) > _NAMED else ""
        return (f"Characters that the vocabulary lacks were left out of the prompt: {listed}{more}",)


class Decoder(Protocol):
    """Decodes one sequence, token by token."""

    def push(self, token_id: int) -> str:
        """The text that is complete now: never half a character. Invalid bytes become U+FFFD once that is certain."""
        ...


class Tokenizer(Protocol):
    """A vocabulary, both ways. Ids without text are specials and padding."""

    @property
    def kind(self) -> str: ...

    @property
    def bos_id(self) -> int | None: ...

    @property
    def prepend_bos(self) -> bool:
        """Whether BOS goes in front of every prompt."""
        ...

    @property
    def stop_ids(self) -> frozenset[int]:
        """Ids with which the model ends a text."""
        ...

    def encode(self, text: str) -> Encoding:
        """Token ids of a prompt; a special token's name in it is text like any other. Raises UnknownCharacterError."""
        ...

    def token_bytes(self, token_id: int) -> bytes | None:
        """The UTF-8 bytes of an id, perhaps a part of a character; None where it has no text."""
        ...

    def decoder(self) -> Decoder:
        """A decoder at the beginning of an answer."""
        ...

    def card(self) -> TokenizerCard:
        """What a front end needs to know."""
        ...


class BytesDecoder:
    """Decodes tokens that are bytes of UTF-8."""

    def __init__(self, token_bytes: Callable[[int], bytes | None]) -> None:
        self._token_bytes = token_bytes
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token_id: int) -> str:
        """See `Decoder`."""
        return self._utf8.decode(self._token_bytes(token_id) or b"")


def refuse_surrogates(text: str) -> None:
    """Raises UnknownCharacterError for half a surrogate pair, which is no character and has no UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UnknownCharacterError(error.start, text[error.start]) from None
