"""Seeds of any size become seeds of the queue."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from api.openai.sampling import folded_seed
from tasks.sampling_params import SEED_BITS


@given(st.integers(min_value=0, max_value=2**SEED_BITS - 1))
def test_a_seed_that_fits_stays(seed: int) -> None:
    assert folded_seed(seed) == seed


@given(st.integers(min_value=-(2**200), max_value=2**200))
def test_every_seed_fits(seed: int) -> None:
    assert 0 <= folded_seed(seed) < 2**SEED_BITS


def test_the_hash_of_a_seed_never_changes() -> None:
    assert folded_seed(-1) == 7327159267672386
    assert folded_seed(2**53) == 7903448982808709
    assert folded_seed(2**63 - 1) == 3505442493404365
