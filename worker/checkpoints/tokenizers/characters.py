"""Vocabularies of single characters: the original guide's own, or one in a `tokenizer_config.json` of its format."""

from __future__ import annotations

import reprlib
from collections import Counter
from collections.abc import Sequence
from typing import Any, Literal

from tasks.card import TokenizerCard
from worker.checkpoints.chat import ChatTemplate
from worker.checkpoints.chat.nanochat import NanochatTemplate
from worker.checkpoints.tokenizers.base import (
    BOS_TOKEN,
    STOP_TOKENS,
    Encoding,
    UnknownCharacterError,
    eos_id_of,
    tool_ids_of,
)
from worker.checkpoints.tokenizers.huggingface_json import of_characters
from worker.checkpoints.tokenizers.incremental import BytesDecoder

#: The guide's characters in id order. `<|bos|>` is the next id.
GUIDE_CHARACTERS = "0123456789+-HBL.\n"
GUIDE_VOCAB_SIZE = 32


class CharacterTokenizer:
    """The first ids are the characters, the next ones the special tokens. The rest of the vocabulary is padding."""

    kind = "characters"

    def __init__(self, characters: str, specials: Sequence[str], *, unknown: Literal["refuse", "skip"]) -> None:
        """`unknown`: whether a prompt with an unknown character is refused, or the character is skipped."""
        self._characters = characters
        self._ids = {character: token_id for token_id, character in enumerate(characters)}
        self._unknown: Literal["refuse", "skip"] = unknown
        self.special_ids = special_ids = {name: len(characters) + i for i, name in enumerate(specials)}
        self.bos_id = special_ids.get(BOS_TOKEN)
        self.prepend_bos = self.bos_id is not None
        self.tool_ids = tool_ids_of(special_ids, self.encode)
        self.chat: ChatTemplate | None = NanochatTemplate.of(special_ids, lambda text: self.encode(text).ids)
        self.stop_ids = frozenset(special_ids[name] for name in STOP_TOKENS if name in special_ids)

    @classmethod
    def from_config(cls, config: dict[str, Any], vocab_size: int) -> CharacterTokenizer:
        """From the content of `tokenizer_config.json`. Raises ValueError, with the reason, if it cannot be used."""
        characters, specials = config.get("vocab_chars"), config.get("special_tokens", [])
        if not isinstance(characters, str | list) or not characters:
            raise ValueError("`vocab_chars` must be a list of characters in id order")
        if wrong := [char for char in characters if not isinstance(char, str) or len(char) != 1]:
            raise ValueError(f"`vocab_chars` must hold single characters; {reprlib.repr(wrong[0])} is not one")
        if halves := [char for char in characters if "\ud800" <= char <= "\udfff"]:
            raise ValueError(f"`vocab_chars` has {halves[0]!r}, half of a surrogate pair, which is not a character")
        if not isinstance(specials, list) or not all(isinstance(name, str) and name for name in specials):
            raise ValueError("`special_tokens` must be a list of names")
        for name, entries in (("vocab_chars", characters), ("special_tokens", specials)):
            if double := next((entry for entry, count in Counter(entries).items() if count > 1), None):
                raise ValueError(f"`{name}` has {reprlib.repr(double)} twice")
        if config.get("vocab_size", vocab_size) != vocab_size:
            found = reprlib.repr(config["vocab_size"])
            raise ValueError(f"`vocab_size` is {found} and the model's is {vocab_size}")
        if len(characters) + len(specials) > vocab_size:
            raise ValueError(
                f"{len(characters)} characters and {len(specials)} special tokens are more than the model's "
                f"{vocab_size} ids"
            )
        return cls("".join(characters), specials, unknown="refuse")

    @classmethod
    def guide(cls) -> CharacterTokenizer:
        """The original guide's vocabulary. Like the guide, it skips unknown characters."""
        return cls(GUIDE_CHARACTERS, [BOS_TOKEN], unknown="skip")

    def encode(self, text: str) -> Encoding:
        """See `Tokenizer`."""
        ids: list[int] = []
        skipped: dict[str, None] = {}
        for index, character in enumerate(text):
            token_id = self._ids.get(character)
            if token_id is not None:
                ids.append(token_id)
            elif self._unknown == "skip":
                skipped[character] = None
            else:
                raise UnknownCharacterError(index, character)
        return Encoding(tuple(ids), tuple(skipped))

    def token_bytes(self, token_id: int) -> bytes | None:
        """See `Tokenizer`."""
        return self._characters[token_id].encode() if 0 <= token_id < len(self._characters) else None

    def decoder(self, prompt: Sequence[int] = ()) -> BytesDecoder:
        """See `Tokenizer`."""
        return BytesDecoder(self.token_bytes, prompt)

    def card(self) -> TokenizerCard:
        """See `Tokenizer`."""
        return TokenizerCard(
            kind=self.kind,
            text_ids=len(self._characters),
            characters=self._characters,
            unknown=self._unknown,
            bos_id=self.bos_id,
            prepend_bos=self.prepend_bos,
            chat=None if self.chat is None else self.chat.kind,
            calculator=self.tool_ids is not None,
            eos_id=eos_id_of(self.special_ids),
        )

    def to_huggingface(self) -> dict[str, Any]:
        """See `Tokenizer`."""
        return of_characters(self._characters, self.special_ids)
