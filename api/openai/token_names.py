"""What log-probabilities call a token: its text, its bytes or its id."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from tasks.card import Card


class Vocabulary(Protocol):
    """The part of a tokenizer that the routes need."""

    def token_bytes(self, token_id: int) -> bytes | None:
        """The bytes of a token; None for a special token."""

    def first_bytes(self, token_id: int) -> bytes | None:
        """The bytes of a token as the first of a text; None for a special token."""

    def name(self, token_id: int) -> str:
        """The name of a special token."""

    def encode(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        """The ids of a text: with BOS or not, and with the names of special tokens as these tokens or not."""

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids."""

    @property
    def config(self) -> Mapping[str, Any]:
        """The members of `tokenizer_config.json`."""


class Vocabularies(Protocol):
    """The vocabularies of the checkpoints."""

    async def get(self, card: Card) -> Vocabulary | None:
        """The vocabulary of a checkpoint; None if no worker has published it. Raises RedisError."""


class TokenNames:
    """Names of the tokens of one checkpoint."""

    def __init__(self, vocabulary: Vocabulary | None, *, as_ids: bool = False) -> None:
        """`vocabulary` None: it is not known. Then, and with `as_ids`, a token is called `token_id:<id>`."""
        self._vocabulary = vocabulary
        self._as_ids = as_ids

    def name(self, token_id: int) -> str:
        """The name of a token. Different tokens have different names, unless their bytes are the same.

        A token that is no UTF-8 by itself is called `bytes:` and its bytes in hexadecimal.
        """
        if self._vocabulary is None or self._as_ids:
            return f"token_id:{token_id}"
        raw = self._vocabulary.token_bytes(token_id)
        if raw is None:
            return self._vocabulary.name(token_id)
        try:
            return raw.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)

    def utf8(self, token_id: int) -> list[int] | None:
        """The bytes of a token; None if it has none, or if they are not known."""
        raw = None if self._vocabulary is None else self._vocabulary.token_bytes(token_id)
        return None if raw is None else list(raw)

    def pieces(self, token_ids: Iterable[int]) -> Sequence[str]:
        """The text that each token adds. The parts of a character are empty, up to the token that completes it.

        Special tokens add nothing.
        """
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        return [decoder.decode(raw) for raw in self._bytes_in_text(token_ids)]

    def _bytes_in_text(self, token_ids: Iterable[int]) -> Iterator[bytes]:
        first = True
        for token_id in token_ids:
            raw = None
            if self._vocabulary is not None:
                raw = self._vocabulary.first_bytes(token_id) if first else self._vocabulary.token_bytes(token_id)
            first = first and raw is None
            yield raw or b""
