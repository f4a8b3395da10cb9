"""A cluster with short times, for tests that kill, stop and cut off its parts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tasks.generation import Generation
from tests.helpers.requests import make_generation
from tests.integration.cluster import Cluster
from tests.integration.stack import CHECKPOINTS, SHIPPED

#: Times of the processes, much shorter than their defaults.
QUICK = {
    "lease_s": "1",
    "worker_ttl_s": "1",
    "heartbeat_s": "0.2",
    "reap_every_s": "0.2",
    "reap_gap_s": "0.5",
    "dispatch_timeout_s": "2",
}
#: A shipped checkpoint: its context has room for jobs that last.
CHECKPOINT = CHECKPOINTS / SHIPPED
#: Tokens of a job that lasts longer than it takes to send a signal.
LONG = 1500
#: Lease and sign of life together, and time for a busy machine, in seconds.
TAKEN_OVER_S = 15.0
#: Tokens that a job has when something happens to it, at least.
BEGUN = 20


def lasting(seed: int, temperature: float = 0.8, *, max_tokens: int = LONG) -> Generation:
    """A request that decodes all of its tokens."""
    return make_generation(
        prompt="123+456=", max_tokens=max_tokens, temperature=temperature, seed=seed, ignore_eos=True
    )


def quick_cluster(redis_url: str, folder: Path, **settings: str) -> Cluster:
    """No process yet. Close it."""
    return Cluster(redis_url, folder, CHECKPOINT, **{"slots": "4", **QUICK, **settings})


@pytest.fixture
def cluster(redis_url: str, tmp_path: Path) -> Iterator[Cluster]:
    cluster = quick_cluster(redis_url, tmp_path)
    yield cluster
    cluster.close()
