"""openai-python raises RateLimitError when the queue is full."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from bench.processes import stop_all
from tests.conformance.client_environment import ClientEnvironment
from tests.integration.cluster import TINY, Cluster, Engine

pytestmark = pytest.mark.slow


@pytest.fixture
def cluster(redis_url: str, tmp_path: Path) -> Iterator[Cluster]:
    cluster = Cluster(redis_url, tmp_path, TINY, slots="1", max_queued_jobs="2")
    yield cluster
    cluster.close()


def test_a_full_queue(cluster: Cluster, tmp_path: Path) -> None:
    worker = cluster.worker()
    _, url = cluster.stack.api()
    # A stopped engine finishes nothing.
    stop_all([Engine(worker)])
    job = {"prompt": "1+1=", "max_tokens": 100, "ignore_eos": True}
    answers = [httpx.post(f"{url}/v1/jobs", json=job).status_code for _ in range(10)]
    assert answers[-1] == httpx.codes.TOO_MANY_REQUESTS
    clients = ClientEnvironment("clients", tmp_path, OPENAI_BASE_URL=f"{url}/v1", OPENAI_API_KEY="none")
    seen = clients.script("openai_limit", {"model": cluster.checkpoint.name})
    assert {*seen} == {"whole", "stream"}
    for error in seen.values():
        assert error["status"] == httpx.codes.TOO_MANY_REQUESTS
        assert error["code"]
        assert int(error["retry_after"]) > 0
        # Nothing was queued, so that the client may try again.
        assert error["should_retry"] in (None, "true")
