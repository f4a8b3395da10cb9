"""Everything is killed, again and again, and no job is lost, done twice, or has another text."""

from __future__ import annotations

import asyncio
import secrets
from pathlib import Path

import pytest

from bench.chaos.storm import Plan, storm

ROUNDS = 200
#: More than the rounds take on two busy cores, in seconds.
LONGEST_S = 2400


@pytest.mark.slow
@pytest.mark.timeout(LONGEST_S)
def test_two_hundred_rounds_of_faults_lose_nothing(tmp_path: Path) -> None:
    seed = secrets.randbits(32)
    print(f"repeat with: python -m bench.chaos --rounds {ROUNDS} --seed {seed}")
    outcome = asyncio.run(storm(Plan(seed=seed, workers_each=2, rounds=ROUNDS, logs=tmp_path)))
    verdict = outcome.verdict
    assert verdict.spotless, "\n".join(verdict.reasons)
    assert verdict.statuses.total() == outcome.jobs
    assert outcome.rounds == ROUNDS
    assert outcome.stuck == 0
    assert not outcome.unexpected
    assert outcome.jobs > ROUNDS
