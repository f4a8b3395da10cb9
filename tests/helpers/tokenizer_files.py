"""nanochat's tokenizer.pkl, with any content."""

from __future__ import annotations

import copyreg
import io
import pickle
from typing import Any

import tiktoken

#: nanochat's special tokens, in its order.
SPECIALS = [
    *("<|bos|>", "<|user_start|>", "<|user_end|>", "<|assistant_start|>", "<|assistant_end|>"),
    *("<|python_start|>", "<|python_end|>", "<|output_start|>", "<|output_end|>"),
]
#: nanochat's split pattern: words, numbers of up to two digits, punctuation, spaces.
PATTERN = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,2}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
)
MERGES = [b"th", b"the", b" t", "é".encode(), "😀".encode()[:2], "😀".encode()]
TEXT_IDS = 256 + len(MERGES)


def pickled(**changes: Any) -> bytes:
    """nanochat's tokenizer.pkl, with some of the encoding's state changed."""
    ranks = {bytes([byte]): byte for byte in range(256)} | {text: 256 + i for i, text in enumerate(MERGES)}
    state = {
        "name": "rustbpe",
        "pat_str": PATTERN,
        "mergeable_ranks": ranks,
        "special_tokens": {name: TEXT_IDS + i for i, name in enumerate(SPECIALS)},
    }
    buffer = io.BytesIO()
    _EncodingPickler(buffer, state | changes).dump(tiktoken.Encoding.__new__(tiktoken.Encoding))
    return buffer.getvalue()


class _EncodingPickler(pickle.Pickler):
    """Pickles an encoding with any state, including states that the library would refuse."""

    def __init__(self, file: io.BytesIO, state: object) -> None:
        super().__init__(file)
        self._state = state

    def reducer_override(self, obj: object) -> Any:
        if isinstance(obj, tiktoken.Encoding):
            return copyreg.__newobj__, (tiktoken.Encoding,), self._state  # type: ignore[attr-defined]
        return NotImplemented
