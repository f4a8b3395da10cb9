"""Log-probabilities of tokens, packed: as the engine sends them and as Redis keeps them beside the token log.

A record belongs to one token. It has one pair for the chosen token and one for each alternative: the id as a
little-endian int32 and its log-probability as a float32. The number of alternatives is that of the request, for every
record: where the vocabulary has fewer ids, the pairs that are missing have the id -1.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from typing import NamedTuple

#: Bytes of an id with its log-probability.
_PAIR_BYTES = 8
#: The id of an alternative that does not exist.
_NO_ID = -1


class TokenLogprob(NamedTuple):
    """The natural logarithm of the probability that the model gave to a token."""

    token_id: int
    logprob: float


class TokenLogprobs(NamedTuple):
    """The log-probability of the token at one place of a text, and of the tokens that were most likely there."""

    chosen: TokenLogprob
    #: The most likely first; of equally likely ones the lower id first. It may contain the chosen one.
    top: tuple[TokenLogprob, ...]


def record_bytes(alternatives: int) -> int:
    """Size of the record of one token."""
    return _PAIR_BYTES * (1 + alternatives)


def pack(items: Sequence[TokenLogprobs], alternatives: int) -> bytes:
    """The records of `items`. An item has at most `alternatives` alternatives."""
    values: list[float] = []
    for item in items:
        missing = alternatives - len(item.top)
        if missing < 0:
            raise ValueError(f"a token has {len(item.top)} alternatives, more than {alternatives}")
        for pair in (item.chosen, *item.top):
            values += pair
        values += (_NO_ID, -math.inf) * missing
    return struct.pack(f"<{'if' * (len(values) // 2)}", *values)


def unpack(data: bytes, alternatives: int) -> tuple[TokenLogprobs, ...]:
    """The items whose records are `data`. Raises ValueError if these are no whole records."""
    size = record_bytes(alternatives)
    if len(data) % size:
        raise ValueError(f"{len(data)} bytes are no whole records of {size} bytes")
    pairs = [TokenLogprob(*pair) for pair in struct.iter_unpack("<if", data)]
    records = (pairs[first : first + 1 + alternatives] for first in range(0, len(pairs), 1 + alternatives))
    return tuple(
        TokenLogprobs(chosen, tuple(pair for pair in top if pair.token_id != _NO_ID)) for chosen, *top in records
    )
