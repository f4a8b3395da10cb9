"""How the names of tokens in a Hugging Face vocabulary represent text.

The decoder of the `tokenizers` library is a chain of steps. This is what they do to a token, and to the whole text:
https://github.com/huggingface/tokenizers/tree/main/tokenizers/src/decoders
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
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


@dataclass(frozen=True, slots=True)
class Replacement:
    """A text that a step replaces, wherever it is."""

    old: str
    new: str
    #: What replaces it in the first token of a text.
    at_beginning: str

    def apply(self, text: str, *, first: bool) -> str:
        """`text` after the step. `first`: it is the first token."""
        return text.replace(self.old, self.at_beginning if first else self.new)


@dataclass(frozen=True, slots=True)
class Stripped:
    """Characters that are removed from the beginning of a whole text."""

    character: str = ""
    most: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Spelling:
    """What a decoder does."""

    #: Whether names are written in GPT-2's alphabet of bytes.
    byte_level: bool = False
    #: Whether a name such as `<0x0A>` represents that byte. The library decodes bytes that follow each other together:
    #: if one of them does not belong to a character, each of them becomes U+FFFD.
    byte_fallback: bool = False
    #: For names, in the order in which they are applied.
    replacements: tuple[Replacement, ...] = ()
    #: Those that also change the text of bytes that follow each other.
    late_replacements: tuple[Replacement, ...] = ()
    stripped: Stripped = field(default_factory=Stripped)

    @classmethod
    def of(cls, decoder: Any) -> Spelling:
        """From the `decoder` of a tokenizer.json. Raises ValueError, with the reason, if it is not supported."""
        return _Chain().read(decoder)

    def byte_of(self, name: str) -> int | None:
        """The byte that a name such as `<0x0A>` represents. None: the name is text."""
        if not self.byte_fallback:
            return None
        found = _BYTE.fullmatch(self._replaced(name, self._early))
        return None if found is None else int(found[1], 16)

    def bytes_of(self, name: str, *, first: bool = False) -> bytes:
        """The UTF-8 bytes that a token represents, which may be a part of a character.

        `first`: it is the first token of a text. `stripped` is not applied.
        """
        if self.byte_level:
            name = self._replaced(name, self.replacements, first=first)
            try:
                return bytes([BYTE_LETTERS[letter] for letter in name])
            except KeyError:
                return name.encode()
        byte = self.byte_of(name)
        return self._replaced(name, self.replacements, first=first).encode() if byte is None else bytes([byte])

    def text_of_bytes(self, text: str, *, first: bool = False) -> str:
        """What becomes of the text of bytes that followed each other. `first`: they began the text."""
        return self._replaced(text, self.late_replacements, first=first)

    @property
    def has_beginning(self) -> bool:
        """Whether a token may represent other bytes as the first of a text."""
        return any(one.at_beginning != one.new for one in self.replacements)

    def names_of_bytes(self) -> Iterator[tuple[int, str]]:
        """The 256 bytes with their names. A vocabulary that has all of them can spell every text."""
        if self.byte_level:
            yield from ((byte, letter) for letter, byte in BYTE_LETTERS.items())
        else:
            yield from ((byte, f"<0x{byte:02X}>") for byte in range(256))

    @property
    def _early(self) -> tuple[Replacement, ...]:
        return self.replacements[: len(self.replacements) - len(self.late_replacements)]

    @staticmethod
    def _replaced(text: str, replacements: tuple[Replacement, ...], *, first: bool = False) -> str:
        for one in replacements:
            text = one.apply(text, first=first)
        return text


class _Chain:
    """Reads the steps of a decoder in order, and refuses those whose effect on a token depends on its neighbours."""

    def __init__(self) -> None:
        self._byte_level = self._byte_fallback = self._fused = False
        self._early: list[Replacement] = []
        self._late: list[Replacement] = []
        self._stripped = Stripped()

    def read(self, decoder: Any) -> Spelling:
        for step in _steps(decoder):
            kind = step["type"]
            if self._byte_level and kind != "Fuse":
                raise ValueError(f"its decoder has a step {kind} after ByteLevel, which is not supported")
            if self._stripped.most and kind != "Fuse":
                raise ValueError(f"its decoder has a step {kind} after Strip, which is not supported")
            if kind == "ByteLevel":
                if self._byte_fallback:
                    raise ValueError("its decoder has both ByteLevel and ByteFallback, which is not supported")
                self._byte_level = self._fused = True
            elif kind == "ByteFallback":
                if self._byte_fallback or self._fused:
                    raise ValueError("its decoder has ByteFallback after Fuse, or twice, which is not supported")
                self._byte_fallback = True
            elif kind == "Fuse":
                self._fused = True
            elif kind == "Strip":
                self._strip(step)
            else:
                self._replace(_replacement(step), kind)
        return Spelling(
            byte_level=self._byte_level,
            byte_fallback=self._byte_fallback,
            replacements=(*self._early, *self._late),
            late_replacements=tuple(self._late),
            stripped=self._stripped,
        )

    def _replace(self, replacement: Replacement, kind: str) -> None:
        if self._fused and kind == "Metaspace":
            raise ValueError("its decoder has Metaspace after Fuse, which is not supported")
        if not self._fused and not self._byte_fallback:
            self._early.append(replacement)
        elif len(replacement.old) == 1:
            self._late.append(replacement)
        else:
            raise ValueError(
                "its decoder replaces a text of several characters in several tokens, which is not supported"
            )

    def _strip(self, step: dict[str, Any]) -> None:
        if not self._fused or step.get("stop"):
            raise ValueError(
                "its decoder has a step Strip that changes more than the beginning of a text, which is not supported"
            )
        if step["start"]:
            self._stripped = Stripped(step["content"], step["start"])


def _steps(decoder: Any) -> Iterator[dict[str, Any]]:
    """The decoder, or the steps of a sequence of decoders. Raises ValueError for an unknown type."""
    kind = decoder.get("type") if isinstance(decoder, dict) else None
    if kind == "Sequence":
        for step in decoder.get("decoders", ()):
            yield from _steps(step)
    elif kind in ("ByteLevel", "ByteFallback", "Metaspace", "Replace", "Fuse", "Strip"):
        yield decoder
    else:
        raise ValueError(
            f"its decoder is of type {kind}; byte-level decoders and SentencePiece's (Metaspace or Replace, with "
            "ByteFallback) are supported"
        )


def _replacement(step: dict[str, Any]) -> Replacement:
    if step["type"] == "Metaspace":
        # It removes the space that the pre-tokenizer put before the text.
        return Replacement(step["replacement"], " ", " " if step.get("prepend_scheme") == "never" else "")
    pattern = step["pattern"]
    if not pattern.get("String"):
        raise ValueError("its decoder replaces by a regular expression, which is not supported")
    return Replacement(pattern["String"], step["content"], step["content"])
