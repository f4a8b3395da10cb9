"""The names of blocks: equal for equal beginnings, and for nothing else."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from worker.engine.kv.block_chain import BlockChain
from worker.engine.kv.budget import BLOCK_TOKENS


def digests(tokens: list[int], salt: str = "", prompt: int = 10_000) -> list[bytes]:
    """Those of the whole blocks of `tokens`, of which the first `prompt` are the prompt."""
    chain = BlockChain(salt)
    chain.extend(tuple(tokens[:prompt]), tokens[prompt:], len(tokens) // BLOCK_TOKENS)
    return chain.digests


@given(st.lists(st.integers(0, 2**18), min_size=32, max_size=200), st.data())
def test_a_digest_depends_on_every_token_before_and_on_nothing_else(tokens: list[int], data: st.DataObject) -> None:
    expected = digests(tokens)
    assert len({*expected}) == len(expected) == len(tokens) // BLOCK_TOKENS
    assert digests(tokens, prompt=data.draw(st.integers(1, len(tokens)))) == expected
    changed = data.draw(st.integers(0, len(tokens) - 1))
    other = digests([*tokens[:changed], tokens[changed] + 1, *tokens[changed + 1 :]])
    same = changed // BLOCK_TOKENS
    assert other[:same] == expected[:same]
    assert not {*other[same:]} & {*expected[same:]}


def test_a_chain_grows_with_its_sequence() -> None:
    tokens = [position % 7 for position in range(130)]
    chain = BlockChain("")
    for length in range(40, 131):
        chain.extend(tuple(tokens[:40]), tokens[40:length], length // BLOCK_TOKENS)
        assert chain.digests == digests(tokens[:length])


def test_chains_of_different_salts_have_nothing_in_common() -> None:
    tokens = [1] * 96
    found = [digests(tokens, salt) for salt in ("", "a", "b", "\udc80")]
    # Not even if a salt is the name of a block.
    found.append(digests(tokens, found[0][0].decode("latin-1")))
    assert len({digest for one in found for digest in one}) == 5 * 3
