"""The texts of the tokens of a Hugging Face tokenizer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import tokenizers

from worker.checkpoints.tokenizers.spelling import Spelling

#: The bytes that UTF-8 has. Some vocabularies have only these.
_UTF8 = frozenset((*range(0xC0), *range(0xC2, 0xF5)))
#: Pre-tokenizers that only divide a text, so that none of it is lost. `Split` is one unless it removes what it matches.
_DIVIDING = ("ByteLevel", "Digits", "Split")


@dataclass(frozen=True, slots=True)
class _Model:
    """How a model treats what its vocabulary cannot spell."""

    byte_fallback: bool
    #: The token for what is left. Unigram models store its id, all others its name.
    unknown_name: str | None = None
    unknown_id: int | None = None

    @classmethod
    def of(cls, tokenizer: tokenizers.Tokenizer) -> _Model:
        model = tokenizer.model
        if isinstance(model, tokenizers.models.Unigram):
            # The library has no attributes for these.
            state = state_of(model)
            return cls(bool(state.get("byte_fallback")), unknown_id=state.get("unk_id"))
        return cls(bool(getattr(model, "byte_fallback", False)), unknown_name=model.unk_token)


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenTexts:
    """What each token represents."""

    spelling: Spelling
    #: The UTF-8 bytes of the ids that have text.
    bytes_of: Mapping[int, bytes]
    #: Those that represent a single byte of a vocabulary with byte fallback.
    byte_ids: frozenset[int]
    #: Those that represent other bytes as the first token of a text.
    first_bytes: Mapping[int, bytes]
    #: The id for what the vocabulary cannot spell. None: the library leaves that out.
    unknown_id: int | None
    #: Bytes of UTF-8 that have no token of their own. None: what has no other tokens does not become bytes.
    missing_bytes: frozenset[int] | None

    @classmethod
    def of(
        cls, tokenizer: tokenizers.Tokenizer, vocabulary: Mapping[str, int], specials: Mapping[str, int]
    ) -> TokenTexts:
        """The texts of a vocabulary. Raises ValueError, with the reason, if the decoder is not supported."""
        spelling = Spelling.of(state_of(tokenizer.decoder))
        model = _Model.of(tokenizer)
        unknown_id = _unknown_id(model, vocabulary)
        names = {i: name for name, i in vocabulary.items() if name not in specials and i != unknown_id}
        bytes_of = {i: spelling.bytes_of(name) for i, name in names.items()}
        first = {i: spelling.bytes_of(name, first=True) for i, name in names.items()} if spelling.has_beginning else {}
        return cls(
            spelling=spelling,
            bytes_of=bytes_of,
            byte_ids=frozenset(i for i, name in names.items() if spelling.byte_of(name) is not None),
            first_bytes={i: text for i, text in first.items() if text != bytes_of[i]},
            unknown_id=unknown_id,
            missing_bytes=_missing_bytes(spelling, vocabulary) if _uses_bytes(tokenizer, model, spelling) else None,
        )

    @property
    def spells_all(self) -> bool:
        """Whether every text has tokens: those of single bytes, if no others."""
        return self.missing_bytes is not None and not self.missing_bytes

    @property
    def longest(self) -> int:
        """UTF-8 bytes of the longest token."""
        return max(map(len, self.bytes_of.values()))


def keeps_whole_text(tokenizer: tokenizers.Tokenizer) -> bool:
    """Whether each byte of a text is in one of its tokens.

    Not if a part of the tokenizer may shorten the text: a normalizer, a pre-tokenizer that removes spaces, or an added
    token that takes the spaces beside it.
    """
    return (
        tokenizer.normalizer is None
        and all(part["type"] in _DIVIDING and part.get("behavior") != "Removed" for part in _dividers(tokenizer))
        and not any(token.lstrip or token.rstrip for token in tokenizer.get_added_tokens_decoder().values())
    )


def state_of(part: Any) -> Any:
    """A part of a tokenizer as its file has it; None if there is none."""
    return None if part is None else json.loads(part.__getstate__())


def _dividers(tokenizer: tokenizers.Tokenizer) -> list[dict[str, Any]]:
    divider = state_of(tokenizer.pre_tokenizer)
    return [] if divider is None else divider.get("pretokenizers", [divider])


def _uses_bytes(tokenizer: tokenizers.Tokenizer, model: _Model, spelling: Spelling) -> bool:
    """Whether a text becomes bytes where there are no other tokens for it."""
    if spelling.byte_level:
        return any(part["type"] == "ByteLevel" for part in _dividers(tokenizer))
    return model.byte_fallback


def _missing_bytes(spelling: Spelling, vocabulary: Mapping[str, int]) -> frozenset[int]:
    return frozenset(byte for byte, name in spelling.names_of_bytes() if byte in _UTF8 and name not in vocabulary)


def _unknown_id(model: _Model, vocabulary: Mapping[str, int]) -> int | None:
    return model.unknown_id if model.unknown_name is None else vocabulary.get(model.unknown_name)
