"""nanochat's `tokenizer.pkl`: a pickled `tiktoken.Encoding`. It is read without running code from the file.

nanochat/tokenizer.py (https://github.com/karpathy/nanochat) writes it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import tiktoken

from tasks.card import TokenizerCard
from tasks.library_errors import LibraryError, library_errors
from worker.checkpoints.chat import ChatTemplate
from worker.checkpoints.chat.nanochat import NanochatTemplate
from worker.checkpoints.pickled_data import Call, RefusedReferenceError, read_pickle
from worker.checkpoints.tokenizers.base import (
    BOS_TOKEN,
    STOP_TOKENS,
    Encoding,
    TokenizerFailedError,
    eos_id_of,
    refuse_surrogates,
)
from worker.checkpoints.tokenizers.huggingface_json import of_ranks
from worker.checkpoints.tokenizers.incremental import BytesDecoder
from worker.engine.tools.tool_ids import ToolIds

K = TypeVar("K")
#: Longest part of a prompt that is encoded at once. The regular expression engine of tiktoken backtracks: on a run of
#: about 400,000 spaces it gives up and panics.
_PART_CHARACTERS = 100_000
#: What nanochat pickles.
_ENCODING = "tiktoken.core.Encoding"


class BpeTokenizer:
    """A byte-pair encoding that tiktoken runs."""

    kind = "tiktoken"

    def __init__(
        self, encoding: tiktoken.Encoding, pattern: str, specials: dict[str, int], text_ids: dict[int, bytes]
    ) -> None:
        """`pattern`: the regular expression that splits a text."""
        self._encoding = encoding
        self._pattern = pattern
        self._text = text_ids
        self.bos_id = specials.get(BOS_TOKEN)
        self.prepend_bos = self.bos_id is not None
        self.special_ids = specials
        self.tool_ids = ToolIds.of(specials)
        self.chat: ChatTemplate | None = NanochatTemplate.of(specials, lambda text: self.encode(text).ids)
        self.stop_ids = frozenset(specials[name] for name in STOP_TOKENS if name in specials)

    @classmethod
    def from_pickle(cls, data: bytes, vocab_size: int) -> BpeTokenizer:
        """From the bytes of `tokenizer.pkl`. Raises ValueError, with the reason, if it cannot be used."""
        try:
            found = read_pickle(data, references=_ENCODING.__eq__, functions=_ENCODING.__eq__)
        except RefusedReferenceError as error:
            raise ValueError(f"{error}, which could run code; only a pickled tiktoken.Encoding is read") from error
        state = found.state if isinstance(found, Call) else None
        if not isinstance(state, dict):
            raise ValueError("it holds no tiktoken.Encoding object")  # noqa: TRY004
        ranks, specials = _table(state.get("mergeable_ranks"), bytes), _table(state.get("special_tokens"), str)
        pattern = state.get("pat_str")
        if not isinstance(pattern, str):
            raise ValueError("its tiktoken.Encoding lacks pat_str")  # noqa: TRY004
        # tiktoken panics when a text has a byte that has no token.
        if missing := [byte for byte in range(256) if bytes([byte]) not in ranks]:
            raise ValueError(f"it has no token for the single byte 0x{missing[0]:02x}, so it cannot spell every text")
        ids = [*ranks.values(), *specials.values()]
        if len(set(ids)) < len(ids) or min(ids) < 0 or b"" in ranks:
            raise ValueError("two of its tokens have the same id, or one is negative or has no text")
        if max(ids) >= vocab_size:
            raise ValueError(f"it has {max(ids) + 1} ids and the model has {vocab_size}: it belongs to another model")
        try:
            with library_errors():
                encoding = tiktoken.Encoding(
                    name="checkpoint", pat_str=pattern, mergeable_ranks=ranks, special_tokens=specials
                )
        except LibraryError as error:
            raise ValueError(f"its split pattern cannot be used: {error}") from error
        return cls(encoding, pattern, specials, {token_id: text for text, token_id in ranks.items()})

    def encode(self, text: str) -> Encoding:
        """See `Tokenizer`."""
        refuse_surrogates(text)
        # Where two parts meet, the tokens may differ from those of the whole text. That does not matter, because a text
        # of this length does not fit into any context.
        parts = (text[start : start + _PART_CHARACTERS] for start in range(0, len(text), _PART_CHARACTERS))
        try:
            with library_errors():
                ids = tuple(token_id for part in parts for token_id in self._encoding.encode_ordinary(part))
        except LibraryError as error:
            raise TokenizerFailedError(str(error)) from error
        return Encoding(ids)

    def token_bytes(self, token_id: int) -> bytes | None:
        """See `Tokenizer`."""
        return self._text.get(token_id)

    def decoder(self, prompt: Sequence[int] = ()) -> BytesDecoder:
        """See `Tokenizer`."""
        return BytesDecoder(self.token_bytes, prompt)

    def card(self) -> TokenizerCard:
        """See `Tokenizer`."""
        return TokenizerCard(
            kind=self.kind,
            text_ids=len(self._text),
            longest_token_bytes=max(map(len, self._text.values())),
            bos_id=self.bos_id,
            prepend_bos=self.prepend_bos,
            chat=None if self.chat is None else self.chat.kind,
            calculator=self.tool_ids is not None,
            eos_id=eos_id_of(self.special_ids),
        )

    def to_huggingface(self) -> dict[str, Any]:
        """See `Tokenizer`."""
        return of_ranks(self._pattern, {text: token_id for token_id, text in self._text.items()}, self.special_ids)


def _table(table: object, key: type[K]) -> dict[K, int]:
    """A table of ids by text or name. Raises ValueError if `table` is anything else."""
    if not isinstance(table, dict) or not all(isinstance(k, key) and type(i) is int for k, i in table.items()):
        raise ValueError("its tiktoken.Encoding lacks mergeable_ranks or special_tokens")
    return table
