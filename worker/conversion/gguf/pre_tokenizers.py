"""How a text is divided before merges join its bytes, by llama.cpp's names (`tokenizer.ggml.pre`).

The patterns are those of the `tokenizer.json` of the models that llama.cpp named them after.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

_LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)"
    r"|\s+"
)
_QWEN_2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class PreTokenizer:
    """One way to divide a text."""

    #: A regular expression that matches the parts; None: GPT-2's, which the library has built in.
    pattern: str | None = None
    #: Whether each digit is a part.
    single_digits: bool = False
    #: Whether the text is brought into Unicode's composed form (NFC) before.
    composed: bool = False
    #: Whether a part that is a token is that token, even if merges would lead to others.
    ignore_merges: bool = False
    #: Whether BOS comes before a text, unless the file says so itself.
    add_bos: bool = False

    @property
    def normalizer(self) -> dict[str, Any] | None:
        """The part of a tokenizer.json."""
        return {"type": "NFC"} if self.composed else None

    @property
    def content(self) -> dict[str, Any]:
        """The part of a tokenizer.json."""
        parts: list[dict[str, Any]] = []
        if self.single_digits:
            parts.append({"type": "Digits", "individual_digits": True})
        if self.pattern is not None:
            pattern = {"Regex": self.pattern}
            parts.append({"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False})
        parts.append(byte_level(use_regex=self.pattern is None))
        return parts[0] if len(parts) == 1 else {"type": "Sequence", "pretokenizers": parts}


def byte_level(*, use_regex: bool) -> dict[str, Any]:
    """The pre-tokenizer, or the decoder, of texts in GPT-2's alphabet of bytes."""
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": use_regex}


_LLAMA = PreTokenizer(pattern=_LLAMA_3, ignore_merges=True, add_bos=True)
_QWEN = PreTokenizer(pattern=_QWEN_2, composed=True)
PRE_TOKENIZERS = {
    "gpt-2": PreTokenizer(),
    "smollm": PreTokenizer(single_digits=True),
    "llama-bpe": _LLAMA,
    "llama3": _LLAMA,
    "llama-v3": _LLAMA,
    "falcon3": _LLAMA,
    "smaug-bpe": PreTokenizer(pattern=_LLAMA_3),
    "qwen2": _QWEN,
    "deepseek-r1-qwen": _QWEN,
    "tekken": PreTokenizer(pattern=_TEKKEN, ignore_merges=True, add_bos=True),
}
