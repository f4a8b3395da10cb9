"""How the names of tokens in a Hugging Face vocabulary represent bytes and spaces."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

#: The name of a byte in a vocabulary with byte fallback.
_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def _byte_letters() -> dict[str, int]:
    """GPT-2's alphabet of bytes: a printable byte is its own character, the others are U+0100 and up, in order.

    Source: `bytes_to_unicode` in https://github.com/openai/gpt-2/blob/master/src/encoder.py
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


BYTE_LETTERS = _byte_letters()


@dataclass(frozen=True, slots=True, kw_only=True)
class Spelling:
    """The part of a decoder that converts each token without its neighbours.

    Decoders may also change the beginning of a text, for example remove a space. That part is ignored, because an
    answer continues a prompt.
    """

    #: Whether names are written in GPT-2's alphabet of bytes.
    byte_level: bool
    #: Whether a name such as `<0x0A>` represents that byte.
    byte_fallback: bool
    #: Pairs of text in names and the text that replaces it, in the order in which they are applied.
    replacements: tuple[tuple[str, str], ...]

    @classmethod
    def of(cls, decoder: Any) -> Spelling:
        """From the `decoder` of a tokenizer.json. Raises ValueError if it cannot decode each token alone."""
        parts = list(_parts(decoder))
        kinds = {part.get("type") for part in parts}
        return cls(
            byte_level="ByteLevel" in kinds,
            byte_fallback="ByteFallback" in kinds,
            replacements=tuple(_replacement(part) for part in parts if part["type"] in ("Metaspace", "Replace")),
        )

    def bytes_of(self, name: str) -> bytes:
        """The UTF-8 bytes that a token represents, which may be a part of a character."""
        if self.byte_fallback and (byte := _BYTE.fullmatch(name)) is not None:
            return bytes([int(byte[1], 16)])
        for old, new in self.replacements:
            name = name.replace(old, new)
        if self.byte_level and all(letter in BYTE_LETTERS for letter in name):
            return bytes(BYTE_LETTERS[letter] for letter in name)
        return name.encode()

    def names_of_bytes(self) -> Iterator[str]:
        """The names of the 256 single bytes. A vocabulary that has all of them can spell every text."""
        if self.byte_level:
            yield from BYTE_LETTERS
        else:
            yield from (f"<0x{byte:02X}>" for byte in range(256))


def _parts(decoder: Any) -> Iterator[dict[str, Any]]:
    """The decoder, or the parts of a sequence of decoders. Raises ValueError for an unknown type."""
    kind = decoder.get("type") if isinstance(decoder, dict) else None
    if kind == "Sequence":
        for part in decoder.get("decoders", ()):
            yield from _parts(part)
    elif kind in ("ByteLevel", "ByteFallback", "Metaspace", "Replace", "Fuse", "Strip"):
        yield decoder
    else:
        raise ValueError(
            f"its decoder is of type {kind}; byte-level decoders and SentencePiece's (Metaspace or Replace, with "
            "ByteFallback) are supported"
        )


def _replacement(part: dict[str, Any]) -> tuple[str, str]:
    if part["type"] == "Metaspace":
        return part["replacement"], " "
    pattern = part["pattern"]
    if "String" not in pattern:
        raise ValueError("its decoder replaces by a regular expression, which is not supported")
    return pattern["String"], part["content"]
