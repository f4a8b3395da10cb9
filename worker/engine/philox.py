"""Counter-based uniform numbers: the same seed and index give the same number on every machine and in every batch.

Philox4x32-10 of Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3" (SC 2011): ten rounds of
multiplication and exclusive or turn a 128-bit counter and a 64-bit key into 128 random bits.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

#: Seeds have this many bits.
SEED_BITS = 64
#: The index of a sequence among those of its seed has this many bits.
CHOICE_BITS = 32

_ROUNDS = 10
_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
#: Added to the two halves of the key after each round.
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)


def philox4x32(counter: NDArray[np.uint64], key: tuple[int, int]) -> NDArray[np.uint64]:
    """Random words (4, n) for the counters in the columns of `counter` (4, n). Words have 32 bits, held in uint64."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        product0, product1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            (product1 >> _HALF) ^ c1 ^ np.uint64(k0),
            product1 & _LOW,
            (product0 >> _HALF) ^ c3 ^ np.uint64(k1),
            product0 & _LOW,
        )
        k0, k1 = (k0 + _KEY_STEPS[0]) & 0xFFFFFFFF, (k1 + _KEY_STEPS[1]) & 0xFFFFFFFF
    return np.stack((c0, c1, c2, c3))


def uniforms(seed: int, first: int, count: int, choice: int = 0) -> list[float]:
    """Numbers `first` to `first + count - 1` of a seed's sequence `choice`, each a multiple of 2^-53 in [0, 1).

    The sequences of a seed are independent of each other; `choice` has `CHOICE_BITS` bits.
    """
    indices = np.arange(first, first + count, dtype=np.uint64)
    zeros = np.zeros_like(indices)
    counter = np.stack((indices & _LOW, indices >> _HALF, zeros + np.uint64(choice), zeros))
    words = philox4x32(counter, (seed & 0xFFFFFFFF, seed >> 32))
    bits = (words[0] >> np.uint64(5)) << np.uint64(26) | words[1] >> np.uint64(6)
    numbers: list[float] = (bits.astype(np.float64) * 2.0**-53).tolist()
    return numbers


class UniformStream:
    """The uniform numbers of one sequence, by index of the generated token. They are computed in blocks."""

    #: Numbers of a block. A block costs little more than a single number.
    _BLOCK = 64

    def __init__(self, seed: int, choice: int = 0) -> None:
        self._seed = seed
        self._choice = choice
        self._first = 0
        self._numbers: list[float] = []

    def __getitem__(self, index: int) -> float:
        """The number for generated token `index` (from 0)."""
        if not 0 <= index - self._first < len(self._numbers):
            self._first = index - index % self._BLOCK
            self._numbers = uniforms(self._seed, self._first, self._BLOCK, self._choice)
        return self._numbers[index - self._first]
