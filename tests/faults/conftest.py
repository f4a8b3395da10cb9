"""A cluster with short times, for tests that kill and stop its parts."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tasks.generation import Generation
from tests.helpers.requests import make_generation
from tests.integration.cluster import Cluster
from tests.integration.stack import CHECKPOINTS, SHIPPED

#: Time settings of the processes, shorter than the defaults. A worker that waits for a processor must not lose a lease.
QUICK = {
    "lease_s": "3",
    "worker_ttl_s": "3",
    "heartbeat_s": "0.2",
    "reap_every_s": "0.2",
    "reap_gap_s": "0.5",
    "dispatch_timeout_s": "2",
}
#: A shipped checkpoint, whose context has room for long jobs, or the folder of another one: see CONTRIBUTING.md.
CHECKPOINT = Path(os.environ.get("FAULTS_CHECKPOINT", CHECKPOINTS / SHIPPED))
#: Tokens of a job that runs for longer than it takes to send a signal.
LONG = 600
#: Longest time until jobs of a lost worker run again, in seconds: its lease, and time for a busy machine.
RECLAIMED_S = 15.0
#: Number of tokens, at least, that a job has before a fault.
BEGUN = 20


def lasting(seed: int, temperature: float = 0.8, *, max_tokens: int = LONG) -> Generation:
    """A request that decodes all of its tokens."""
    return make_generation(
        prompt="123+456=", max_tokens=max_tokens, temperature=temperature, seed=seed, ignore_eos=True
    )


def quick_cluster(redis_url: str, folder: Path, **settings: str) -> Cluster:
    """A cluster without processes. Close it."""
    return Cluster(redis_url, folder, CHECKPOINT, **{"slots": "4", **QUICK, **settings})


@pytest.fixture
def cluster(redis_url: str, tmp_path: Path) -> Iterator[Cluster]:
    cluster = quick_cluster(redis_url, tmp_path)
    yield cluster
    cluster.close()
