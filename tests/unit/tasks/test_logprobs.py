"""Packed log-probabilities."""

from __future__ import annotations

import math
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.logprobs import TokenLogprob, TokenLogprobs, pack, record_bytes, unpack

PAIRS = st.builds(TokenLogprob, st.integers(0, 2**31 - 1), st.floats(max_value=0, width=32))


@given(data=st.data(), alternatives=st.integers(0, 20))
def test_records_are_read_back_with_the_alternatives_that_exist(data: st.DataObject, alternatives: int) -> None:
    item = st.builds(TokenLogprobs, PAIRS, st.lists(PAIRS, max_size=alternatives).map(tuple))
    items = tuple(data.draw(st.lists(item, max_size=5)))
    packed = pack(items, alternatives)
    assert len(packed) == len(items) * record_bytes(alternatives)
    assert unpack(packed, alternatives) == items


def test_a_record_is_pairs_of_an_id_and_a_float() -> None:
    item = TokenLogprobs(TokenLogprob(7, -0.5), (TokenLogprob(9, -0.25),))
    assert pack([item], 2) == struct.pack("<ififif", 7, -0.5, 9, -0.25, -1, -math.inf)


def test_records_join() -> None:
    items = tuple(TokenLogprobs(TokenLogprob(i, -i / 2), ()) for i in range(4))
    assert unpack(pack(items[:1], 0) + pack(items[1:], 0), 0) == items


def test_bytes_that_are_no_whole_records_are_refused() -> None:
    with pytest.raises(ValueError, match="12 bytes are no whole records of 8 bytes"):
        unpack(bytes(12), 0)
    with pytest.raises(ValueError, match="16 bytes are no whole records of 24 bytes"):
        unpack(bytes(16), 2)


def test_more_alternatives_than_a_record_has_are_refused() -> None:
    pair = TokenLogprob(1, -1.0)
    with pytest.raises(ValueError, match="2 alternatives, more than 1"):
        pack([TokenLogprobs(pair, (pair, pair))], 1)
