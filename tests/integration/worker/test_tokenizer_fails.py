"""A tokenizer whose library panics on some prompts: their jobs fail, and the worker keeps all its slots."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from celeriac.cli import main
from tasks.job import ErrorCode, Status
from tests.helpers.checkpoint_files import ROWS, meta, state_dict, write
from tests.helpers.requests import make_generation
from tests.helpers.tokenizer_files import pickled
from tests.integration.cluster import Cluster

#: The library's regular expression engine backtracks for ever on this pattern and prompt, gives up, and panics.
PATTERN = r"(a|aa)+\1$|."
PANICS = "a" * 40 + "c"
SLOTS = 2
VOCAB_SIZE = 320


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    rows = max(ROWS, VOCAB_SIZE)
    folder = write(tmp_path / "panicking", state_dict(rows=rows, vocab_size=VOCAB_SIZE), meta(vocab_size=VOCAB_SIZE))
    (folder / "tokenizer.pkl").write_bytes(pickled(pat_str=PATTERN))
    return folder


@pytest.fixture
def cluster(redis_url: str, tmp_path: Path, checkpoint: Path) -> Iterator[Cluster]:
    cluster = Cluster(redis_url, tmp_path, checkpoint, slots=str(SLOTS))
    yield cluster
    cluster.close()


def test_more_panics_than_slots_and_spare_messages_fail_their_jobs_alone(cluster: Cluster) -> None:
    worker = cluster.worker()
    panicking = make_generation(prompt=PANICS, max_tokens=5, temperature=0.0, seed=1)
    for job_id in cluster.submit_all([panicking] * (3 * SLOTS + 5)):
        job = cluster.finished(job_id)
        assert job.status is Status.FAILED
        assert job.error is not None
        assert (job.error.code, job.error.retryable) == (ErrorCode.INVALID_REQUEST, False)
        assert "tokenizer failed on the prompt" in job.error.message
        assert job.attempt == 0
    healthy = make_generation(prompt="the c", max_tokens=5, temperature=0.0, seed=1, ignore_eos=True)
    jobs = [cluster.finished(job_id) for job_id in cluster.submit_all([healthy] * (SLOTS + 1))]
    assert [job.status for job in jobs] == [Status.SUCCEEDED] * (SLOTS + 1)
    cluster.until_quiet()
    assert "Traceback" not in worker.output


def test_run_says_a_sentence_and_inspect_reads_the_card(checkpoint: Path) -> None:
    runner = CliRunner()
    ran = runner.invoke(main, ["run", str(checkpoint), "--prompt", PANICS, "--device", "cpu"])
    assert ran.exit_code == 1
    assert "Error: This checkpoint's tokenizer failed on the prompt" in ran.output
    assert ran.output.count("\n") <= 3
    inspected = runner.invoke(main, ["inspect", str(checkpoint)])
    assert inspected.exit_code == 0
    assert "tiktoken" in inspected.output
