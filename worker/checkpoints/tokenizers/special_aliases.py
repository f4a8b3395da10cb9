"""Encodes a text in which some names of special tokens are special tokens, and others are text."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Sequence

import tokenizers

#: The characters around a second name: noncharacters of Unicode.
_BEGIN, _END = "\ufdd0", "\ufdd1"


def is_alias(name: str) -> bool:
    """Whether a token is a second name."""
    return name.startswith(_BEGIN) and name.endswith(_END)


class SpecialAliases:
    """Second names for special tokens, which are not known outside of this process, so that no message contains one.

    The tokenizer must take special tokens for text. The second names are added to it as tokens that are not special, so
    it finds them, and treats the spaces beside them as the special tokens want it. The whole text is encoded at once,
    because parts of it, one after the other, may give other ids.
    """

    def __init__(self, tokenizer: tokenizers.Tokenizer, names: Iterable[str]) -> None:
        nonce = secrets.token_hex(16)
        added = {token.content: token for token in tokenizer.get_added_tokens_decoder().values()}
        self._aliases = {name: f"{_BEGIN}{nonce}{index:x}{_END}" for index, name in enumerate(names)}
        tokenizer.add_tokens(
            [
                tokenizers.AddedToken(
                    alias,
                    lstrip=added[name].lstrip,
                    rstrip=added[name].rstrip,
                    normalized=added[name].normalized,
                    special=False,
                )
                for name, alias in self._aliases.items()
            ]
        )
        self._ids = {_id_of(tokenizer, alias): _id_of(tokenizer, name) for name, alias in self._aliases.items()}

    def text(self, parts: Sequence[tuple[bool, str]]) -> str:
        """The text to encode. The parts are (True, the name of a special token) and (False, text)."""
        return "".join(self._aliases[text] if is_special else text for is_special, text in parts)

    def real(self, ids: Iterable[int]) -> tuple[int, ...]:
        """The ids of the text, with the special tokens in place of the second names."""
        return tuple(self._ids.get(token_id, token_id) for token_id in ids)


def _id_of(tokenizer: tokenizers.Tokenizer, name: str) -> int:
    token_id: int | None = tokenizer.token_to_id(name)
    assert token_id is not None, "it is in the vocabulary"
    return token_id
