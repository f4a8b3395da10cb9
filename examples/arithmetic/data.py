"""The training documents, the held-out sums, and the conversion between text and token ids.

A document is a question and its answer. The question's digits cannot be predicted, so its tokens have a small weight in
the loss. The answer follows from the question, so its tokens have weight 1. The token ids of a document are BOS, text,
BOS.
"""

from __future__ import annotations

import random
from typing import NamedTuple

import torch
from torch import Tensor

CHARS = "0123456789+-HBL.\n="  # ids 0 to 17
BOS = len(CHARS)  # id 18: before and after a text
VOCAB_SIZE = 32  # ids 19 to 31 are unused

HELD_OUT_SEED = 579
HELD_OUT_SUMS = 1000
SHORT_WIDTH = 14  # tokens of the longest document of one line, both BOS included
LONG_WIDTH = 22  # tokens of five lines of three digits, both BOS included
QUESTION_WEIGHT = 0.1

STEPS = (1, 2, 3, 5, 10, 11, 20, 25, 50, 100, 101, 111, 200, 222, 333)  # between number lines

_CHAR_ID = {char: i for i, char in enumerate(CHARS)}


class Document(NamedTuple):
    question: str
    answer: str


class Batch(NamedTuple):
    """Rows of one document each, padded on the right with BOS of weight 0."""

    inputs: Tensor  # (B, T) int64
    targets: Tensor  # (B, T) int64: the inputs one position later
    weights: Tensor  # (B, T) float32: of each target in the loss


def encode(text: str) -> list[int]:
    """The token ids of a text, without BOS. Raises KeyError for a character that is not in CHARS."""
    return [_CHAR_ID[char] for char in text]


def decode(ids: list[int]) -> str:
    """The text of token ids, which must all be ids of characters."""
    return "".join(CHARS[i] for i in ids)


def sum_document(a: int, b: int) -> Document:
    return Document(f"{a}+{b}=", str(a + b))


def difference_document(a: int, b: int) -> Document:
    return Document(f"{a}-{b}=", str(a - b))


def held_out_sums() -> list[tuple[int, int]]:
    """The pairs of three-digit numbers that no training document adds, in either order.

    The first HELD_OUT_SUMS pairs are the test set. They are always the same. The last pair is the guide's example,
    123+456.
    """
    rng = random.Random(HELD_OUT_SEED)
    pairs: dict[tuple[int, int], None] = {}
    while len(pairs) < HELD_OUT_SUMS:
        a, b = rng.randint(100, 999), rng.randint(100, 999)
        if (a, b) != (123, 456) and (b, a) not in pairs:
            pairs[a, b] = None
    return [*pairs, (123, 456)]


class Documents:
    """Draws training documents from a seed, without the held-out sums."""

    def __init__(self, seed: int) -> None:
        self._rng = random.Random(seed)
        self._held_out = {pair for a, b in held_out_sums() for pair in ((a, b), (b, a))}

    def short(self) -> Document:
        """Draw a document of at most SHORT_WIDTH tokens, usually a sum."""
        draw = self._rng.random()
        if draw < 0.86:
            return self._sum()
        if draw < 0.94:
            return self._difference()
        if draw < 0.98:
            return self._number_lines(3)
        return self._letters()

    def long(self) -> Document:
        """Draw a document of at most LONG_WIDTH tokens: four or five number lines."""
        return self._number_lines(self._rng.choice((4, 5)))

    def _number(self, digits: int) -> int:
        return self._rng.randint(10 ** (digits - 1) if digits > 1 else 0, 10**digits - 1)

    def _pair(self) -> tuple[int, int]:
        """Two numbers of three digits. In one of eight cases, each has one to three digits."""
        if self._rng.random() < 0.875:
            return self._number(3), self._number(3)
        return self._number(self._rng.randint(1, 3)), self._number(self._rng.randint(1, 3))

    def _sum(self) -> Document:
        while (pair := self._pair()) in self._held_out:
            pass
        return sum_document(*pair)

    def _difference(self) -> Document:
        return difference_document(*self._pair())

    def _number_lines(self, count: int) -> Document:
        """Numbers below 1000 at equal distances, one on each line. The first two lines are the question."""
        step = self._rng.choice([step for step in STEPS if step * count < 1000])
        first = self._rng.randint(0 if self._rng.random() < 0.25 else 100, 999 - step * (count - 1))
        lines = [f"{first + step * i}\n" for i in range(count)]
        return Document("".join(lines[:2]), "".join(lines[2:]))

    def _letters(self) -> Document:
        """A word of one to three of the letters H, B and L, plus one of one or two. The answer is both together."""
        a, b = ("".join(self._rng.choices("HBL", k=self._rng.choice(lengths))) for lengths in ((1, 1, 2, 3), (1, 1, 2)))
        return Document(f"{a}+{b}=", a + b)


def make_batch(documents: list[Document], width: int) -> Batch:
    """Make a batch of T = width - 1 positions from documents of at most `width` tokens."""
    tokens, weights = [], []
    for question, answer in documents:
        padding = width - len(question) - len(answer) - 2
        tokens.append([BOS, *encode(question + answer), BOS] + [BOS] * padding)
        weights.append([QUESTION_WEIGHT] * len(question) + [1.0] * (len(answer) + 1) + [0.0] * padding)
    ids = torch.tensor(tokens)
    return Batch(ids[:, :-1].contiguous(), ids[:, 1:].contiguous(), torch.tensor(weights))
