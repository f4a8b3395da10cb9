"""Hugging Face's `tokenizer.json`."""

from __future__ import annotations

import json
import re
from typing import Any

import tokenizers
from tokenizers.decoders import DecodeStream

from tasks.card import TokenizerCard
from worker.checkpoints.tokenizers.base import BOS_TOKEN, STOP_TOKENS, Encoding, refuse_surrogates

#: How vocabularies with byte fallback spell a byte.
_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
#: How SentencePiece spells a space.
_SPACE = "\u2581"
_BOS_TOKENS = (BOS_TOKEN, "<s>", "<bos>")


class HuggingFaceTokenizer:
    """Any tokenizer that the `tokenizers` library reads."""

    kind = "huggingface"

    def __init__(self, tokenizer: tokenizers.Tokenizer, text: dict[int, bytes], specials: dict[str, int]) -> None:
        self._tokenizer = tokenizer
        self._text = text
        self.bos_id = next((specials[name] for name in _BOS_TOKENS if name in specials), None)
        self.prepend_bos = self.bos_id is not None
        stops = frozenset(specials[name] for name in STOP_TOKENS if name in specials)
        self.stop_ids = stops if self.bos_id is None else stops | {self.bos_id}

    @classmethod
    def from_json(cls, data: bytes, vocab_size: int) -> HuggingFaceTokenizer:
        """From the bytes of `tokenizer.json`. ValueError with the reason where it cannot be used."""
        try:
            tokenizer = tokenizers.Tokenizer.from_str(data.decode())
        # The library raises a bare Exception for whatever it cannot read.
        except Exception as error:
            raise ValueError(f"the tokenizers library cannot read it: {error}") from error
        specials = {token.content: i for i, token in tokenizer.get_added_tokens_decoder().items() if token.special}
        vocabulary: dict[str, int] = tokenizer.get_vocab(with_added_tokens=True)
        if max(vocabulary.values(), default=0) >= vocab_size:
            raise ValueError(
                f"it has {max(vocabulary.values()) + 1} ids and the model has {vocab_size}: it belongs to another model"
            )
        by_bytes = _decodes_bytes(json.loads(data).get("decoder"))
        plain = {token.content for token in tokenizer.get_added_tokens_decoder().values() if not token.special}
        text = {
            i: name.encode() if name in plain else _bytes_of(name, by_bytes)
            for name, i in vocabulary.items()
            if name not in specials
        }
        return cls(tokenizer, text, specials)

    def encode(self, text: str) -> Encoding:
        """See `Tokenizer`."""
        refuse_surrogates(text)
        # Special tokens would be put around the text here, and read out of it there: BOS is put in front by the card.
        self._tokenizer.encode_special_tokens = True
        return Encoding(tuple(self._tokenizer.encode(text, add_special_tokens=False).ids))

    def token_bytes(self, token_id: int) -> bytes | None:
        """See `Tokenizer`."""
        return self._text.get(token_id)

    def decoder(self) -> _StreamDecoder:
        """See `Tokenizer`."""
        return _StreamDecoder(self._tokenizer)

    def card(self) -> TokenizerCard:
        """See `Tokenizer`."""
        return TokenizerCard(kind=self.kind, text_ids=len(self._text), bos_id=self.bos_id, prepend_bos=self.prepend_bos)


class _StreamDecoder:
    """The library's own incremental decoder, which knows what spaces and bytes a tokenizer's rules add and remove."""

    def __init__(self, tokenizer: tokenizers.Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._stream = DecodeStream(skip_special_tokens=True)

    def push(self, token_id: int) -> str:
        """See `Decoder`."""
        return self._stream.step(self._tokenizer, token_id) or ""


def _decodes_bytes(decoder: Any) -> bool:
    """Whether a decoder, or one of a sequence, reads tokens as bytes in GPT-2's spelling."""
    if not isinstance(decoder, dict):
        return False
    return decoder.get("type") == "ByteLevel" or any(_decodes_bytes(part) for part in decoder.get("decoders", ()))


def _bytes_of(name: str, by_bytes: bool) -> bytes:
    if by_bytes:
        return bytes(_BYTE_OF[character] for character in name if character in _BYTE_OF)
    if (byte := _BYTE.fullmatch(name)) is not None:
        return bytes([int(byte[1], 16)])
    return name.replace(_SPACE, " ").encode()


def _byte_spelling() -> dict[str, int]:
    """GPT-2's spelling of bytes: printable ones as they are, the others from U+0100 on, in order."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    spelling = {chr(byte): byte for byte in printable}
    others = [byte for byte in range(256) if byte not in set(printable)]
    spelling.update({chr(256 + i): byte for i, byte in enumerate(others)})
    return spelling


_BYTE_OF = _byte_spelling()
