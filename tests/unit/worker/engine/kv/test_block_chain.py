"""The names of blocks: equal for equal beginnings, and for nothing else."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from worker.engine.kv.block_chain import BlockChain
from worker.engine.kv.budget import BLOCK_TOKENS


def digests(tokens: list[int], salt: str = "") -> list[bytes]:
    """Those of the whole blocks of `tokens`."""
    chain = BlockChain(salt)
    chain.extend(lambda start, end: tokens[start:end], len(tokens))
    return chain.digests


@given(st.lists(st.integers(0, 2**18), min_size=32, max_size=200), st.data())
def test_a_digest_depends_on_every_token_before_and_on_nothing_else(tokens: list[int], data: st.DataObject) -> None:
    expected = digests(tokens)
    assert len({*expected}) == len(expected) == len(tokens) // BLOCK_TOKENS
    changed = data.draw(st.integers(0, len(tokens) - 1))
    other = digests([*tokens[:changed], tokens[changed] + 1, *tokens[changed + 1 :]])
    same = changed // BLOCK_TOKENS
    assert other[:same] == expected[:same]
    assert not {*other[same:]} & {*expected[same:]}


def test_a_chain_grows_with_its_sequence() -> None:
    tokens = [position % 7 for position in range(130)]
    chain = BlockChain("")
    for length in range(40, 131):
        chain.extend(lambda start, end: tokens[start:end], length)
        assert chain.digests == digests(tokens[:length])


@given(st.lists(st.integers(0, 9), min_size=8, max_size=100), st.data())
def test_a_mark_names_exactly_its_tokens(tokens: list[int], data: st.DataObject) -> None:
    chain = BlockChain("")
    length = data.draw(st.integers(8, len(tokens)))
    whole = chain.beginning(lambda start, end: tokens[start:end], length)
    assert (whole.tokens, whole.digests) == (tokens[:length], digests(tokens[:length]))
    assert whole.names == [*whole.digests, whole.mark]
    again = BlockChain("").beginning(lambda start, end: tokens[start:end], length)
    assert again == whole
    others = [chain.beginning(lambda start, end: tokens[start:end], other).mark for other in range(8, len(tokens) + 1)]
    assert len({*others, *chain.digests}) == len(others) + len(chain.digests)


def test_a_few_tokens_have_no_mark() -> None:
    assert BlockChain("").beginning(lambda start, end: [1] * (end - start), 7).names == []


def test_chains_of_different_salts_have_nothing_in_common() -> None:
    tokens = [1] * 96
    found = [digests(tokens, salt) for salt in ("", "a", "b", "\udc80")]
    # Not even if a salt is the name of a block.
    found.append(digests(tokens, found[0][0].decode("latin-1")))
    assert len({digest for one in found for digest in one}) == 5 * 3
