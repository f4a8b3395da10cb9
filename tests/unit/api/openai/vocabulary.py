"""A small vocabulary: `a`, `b`, the three bytes of the euro sign, and BOS."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tasks.card import Card

EURO = (2, 3, 4)
BOS = 5


class SmallVocabulary:
    """Implements `api.openai.token_names.Vocabulary`."""

    _bytes = (b"a", b"b", b"\xe2", b"\x82", b"\xac", None)

    def token_bytes(self, token_id: int) -> bytes | None:
        return self._bytes[token_id]

    def first_bytes(self, token_id: int) -> bytes | None:
        return self._bytes[token_id]

    def name(self, token_id: int) -> str:
        return "<|bos|>" if token_id == BOS else repr(token_id)

    def encode(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        ids = [self._bytes.index(bytes([byte])) for byte in text.encode()]
        return [BOS, *ids] if add_special else ids

    def decode(self, ids: Sequence[int]) -> str:
        return b"".join(self._bytes[token_id] or b"" for token_id in ids).decode(errors="replace")

    @property
    def config(self) -> Mapping[str, Any]:
        return {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<|bos|>"}


VOCABULARY = SmallVocabulary()


class Vocabularies:
    """Knows the small vocabulary for every checkpoint."""

    async def get(self, card: Card) -> SmallVocabulary:
        return VOCABULARY
