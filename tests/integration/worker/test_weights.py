"""Workers with int8 weights serve jobs, but not together with workers with exact weights."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tasks.job import Status
from tasks.sampling_params import SamplingParams
from tests.conftest import running_redis
from tests.integration.cluster import Cluster, long_generation
from tests.integration.stack import START_S
from worker.engine.native.library import library
from worker.local import LocalModel


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with running_redis(tmp_path) as url:
        cluster = Cluster(f"{url}?db=0", tmp_path, slots="2")
        try:
            yield cluster
        finally:
            cluster.close()


@pytest.mark.skipif(library() is None, reason="there is no C compiler, or it does not support this processor")
def test_workers_of_a_checkpoint_have_equal_weights(cluster: Cluster) -> None:
    cluster.worker(weights="int8")
    exact = cluster.worker(wait=False)
    assert exact.wait(START_S) == 1
    assert "CELERIAC_WEIGHTS" in exact.output
    cluster.worker(weights="int8")

    job = cluster.finished(cluster.submit(long_generation(max_tokens=30)))
    assert job.status is Status.SUCCEEDED
    local = LocalModel.load(str(cluster.checkpoint), Path(), weights="int8")
    prompt_ids, _ = local.encode("12+3")
    sampling = SamplingParams(max_tokens=30, temperature=0.8, seed=7, ignore_eos=True)
    assert cluster.token_ids(job.id) == local.generate(prompt_ids, sampling).token_ids
