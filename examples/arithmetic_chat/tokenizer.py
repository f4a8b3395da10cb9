"""The tokenizer: a small byte-pair encoding in nanochat's form, trained on the dialogues' words.

Needs `tiktoken`, and `regex`, which tiktoken installs.
"""

from __future__ import annotations

import itertools
import pickle
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import cast

import regex
import tiktoken

#: nanochat's split pattern: words with the character before them, numbers of up to two digits, punctuation, spaces.
PATTERN = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,2}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
)
#: nanochat's special tokens in its order: the last ids of the vocabulary.
SPECIALS = (
    "<|bos|>",
    "<|user_start|>",
    "<|user_end|>",
    "<|assistant_start|>",
    "<|assistant_end|>",
    "<|python_start|>",
    "<|python_end|>",
    "<|output_start|>",
    "<|output_end|>",
)


def train(texts: Iterable[str], vocab_size: int) -> tiktoken.Encoding:
    """Learn the merges from texts. Numbers are left out, so that each of their digits stays a token of its own."""
    words = Counter(chunk for text in texts for chunk in regex.findall(PATTERN, text) if not chunk.isdigit())
    spelled = {word: [bytes([byte]) for byte in word.encode()] for word in words}
    ranks = {bytes([byte]): byte for byte in range(256)}
    while len(ranks) + len(SPECIALS) < vocab_size:
        pairs: Counter[tuple[bytes, bytes]] = Counter()
        for word, count in words.items():
            for pair in itertools.pairwise(spelled[word]):
                pairs[pair] += count
        best = max(pairs, key=lambda pair: (pairs[pair], pair))
        ranks[b"".join(best)] = len(ranks)
        for word, parts in spelled.items():
            spelled[word] = _merged(parts, best)
    specials = {name: len(ranks) + i for i, name in enumerate(SPECIALS)}
    return tiktoken.Encoding(name="rustbpe", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens=specials)


def _merged(parts: list[bytes], pair: tuple[bytes, bytes]) -> list[bytes]:
    """`parts` with every occurrence of the pair joined, from left to right."""
    joined, i = [], 0
    while i < len(parts):
        found = tuple(parts[i : i + 2]) == pair
        joined.append(b"".join(pair) if found else parts[i])
        i += 2 if found else 1
    return joined


def save(encoding: tiktoken.Encoding, folder: Path) -> None:
    """Write `tokenizer.pkl`, as nanochat does."""
    (folder / "tokenizer.pkl").write_bytes(pickle.dumps(encoding))


def load(folder: Path) -> tiktoken.Encoding:
    """Read `tokenizer.pkl`. Unpickling can run code: use it only for files that you trust."""
    return cast(tiktoken.Encoding, pickle.loads((folder / "tokenizer.pkl").read_bytes()))
