"""The files of a checkpoint change under a running worker, and its engine or the whole worker is killed then.

Whatever changes, no text is continued with other weights or another vocabulary than it was begun with.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from tasks.job import ErrorCode, Status
from tests.integration.cluster import Cluster, Engine, long_generation
from tests.integration.stack import CHECKPOINTS, SHIPPED, Process

MODEL = "model_002920.pt"
META = "meta_002920.json"
VOCABULARY = "tokenizer_config.json"
CHARACTERS = "0123456789+-HBL.\n"
#: Tokens of a job that lasts much longer than it takes to stop an engine.
LONG = 600
#: How long a worker that gives up may take to end, in seconds.
END_S = 120.0


def write_vocabulary(folder: Path, characters: str) -> None:
    """Replace the vocabulary file of a checkpoint."""
    content = {"vocab_chars": list(characters), "special_tokens": ["<|bos|>"], "vocab_size": 32}
    (folder / VOCABULARY).write_text(json.dumps(content))


def write_weights(folder: Path) -> None:
    """Replace the weights of a checkpoint by others of the same shapes, under a temporary name first."""
    weights = torch.load(folder / MODEL, weights_only=True)
    generator = torch.Generator().manual_seed(1)
    changed = {
        name: tensor + 0.1 * torch.randn(tensor.shape, generator=generator).to(tensor.dtype)
        for name, tensor in weights.items()
    }
    torch.save(changed, folder / "new.pt")
    (folder / "new.pt").rename(folder / MODEL)


@pytest.fixture
def cluster(redis_url: str, tmp_path: Path) -> Iterator[Cluster]:
    folder = tmp_path / "runs" / "d4"
    shutil.copytree(CHECKPOINTS / SHIPPED, folder)
    write_vocabulary(folder, CHARACTERS)
    cluster = Cluster(redis_url, tmp_path, folder, slots="2", worker_ttl_s="3", heartbeat_s="0.5")
    yield cluster
    cluster.close()


def begin(cluster: Cluster, worker: Process, count: int = 1) -> tuple[Engine, list[str]]:
    """A stopped engine, and jobs that it has decoded in part."""
    engine = Engine(worker)
    return engine, cluster.begin([engine], [long_generation(seed, max_tokens=LONG) for seed in range(count)])


def other_vocabulary(folder: Path) -> None:
    write_vocabulary(folder, CHARACTERS[::-1])


def other_meta(folder: Path) -> None:
    content = json.loads((folder / META).read_text())
    content["model_config"]["sequence_len"] = 1024
    (folder / META).write_text(json.dumps(content))


def link_to_other_weights(folder: Path) -> None:
    other = folder.parent / "other"
    shutil.copytree(folder, other)
    write_weights(other)
    (folder / MODEL).unlink()
    (folder / MODEL).symlink_to(other / MODEL)


def no_files(folder: Path) -> None:
    folder.rename(folder.with_name("away"))


def damaged_weights(folder: Path) -> None:
    os.truncate(folder / MODEL, 1000)


def assert_given_up(cluster: Cluster, worker: Process, job_id: str, before: str, named: str) -> None:
    """The worker ends with a message that contains `named`. Its job waits with the text that it had."""
    assert worker.wait(END_S) == 1
    assert named in worker.output
    assert "Traceback" not in worker.output
    assert cluster.workers_now() == []
    job = cluster.job(job_id)
    assert (job.status, job.losses) == (Status.QUEUED, 1)
    assert cluster.log(job_id).text == before


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "named"),
    [
        (other_vocabulary, "files of d4 were replaced"),
        (other_meta, "files of d4 were replaced"),
        (link_to_other_weights, "files of d4 were replaced"),
        (no_files, META),
        (damaged_weights, MODEL),
    ],
)
def test_an_engine_that_would_load_other_files_ends_the_worker_and_no_text_is_continued(
    cluster: Cluster, change: Callable[[Path], None], named: str
) -> None:
    worker = cluster.worker()
    engine, (job_id,) = begin(cluster, worker)
    before = cluster.log(job_id).text
    change(cluster.checkpoint)
    engine.kill()
    assert_given_up(cluster, worker, job_id, before, named)


@pytest.mark.parametrize("whole", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["engine", "worker"])
def test_a_new_worker_serves_the_new_files_and_jobs_of_the_old_ones_fail_with_their_text(
    cluster: Cluster, whole: bool
) -> None:
    worker = cluster.worker()
    engine, (job_id,) = begin(cluster, worker)
    before = cluster.log(job_id).text
    write_weights(cluster.checkpoint)
    if whole:
        worker.kill()
    else:
        engine.kill()
        assert_given_up(cluster, worker, job_id, before, "files of d4 were replaced")
    # The killed worker counts as live for a while, and has other weights: the new one waits for that.
    cluster.worker()
    job = cluster.finished(job_id)
    assert job.status is Status.FAILED
    assert job.error is not None
    assert (job.error.code, job.error.retryable) == (ErrorCode.CHECKPOINT_CHANGED, True)
    assert job.completion == before
    assert len(before) >= 5
    cluster.assert_undisturbed(cluster.finished(cluster.submit(long_generation(9, max_tokens=20))))


def test_a_worker_that_still_has_the_old_weights_continues_the_jobs(cluster: Cluster) -> None:
    first = cluster.worker()
    engine, job_ids = begin(cluster, first, 2)
    second = cluster.worker()
    original = cluster.checkpoint.with_name("original")
    shutil.copytree(cluster.checkpoint, original)
    write_weights(cluster.checkpoint)
    engine.kill()
    jobs = [cluster.finished(job_id) for job_id in job_ids]
    assert first.wait(END_S) == 1
    assert second.returncode is None
    cluster.checkpoint = original
    cluster.assert_undisturbed(*jobs)
    assert {job.attempt for job in jobs} == {2}


def test_an_engine_waits_until_files_that_are_being_copied_are_complete(cluster: Cluster) -> None:
    """The same weights are copied over the old ones, slowly. The engine is killed in the middle of that."""
    worker = cluster.worker()
    engine, (job_id,) = begin(cluster, worker)
    path = cluster.checkpoint / MODEL
    content = path.read_bytes()
    path.unlink()
    half = len(content) // 2
    path.write_bytes(content[:half])
    engine.kill()
    worker.wait_for_line('"waits_for_checkpoint"')
    assert [info.state for info in cluster.workers_now()] == ["starting"]
    with path.open("ab") as file:
        file.write(content[half:])
    job = cluster.finished(job_id)
    cluster.assert_undisturbed(job)
    assert job.attempt == 2
    assert worker.returncode is None


@pytest.mark.slow
def test_a_link_that_points_to_another_folder_now_does_not_change_a_running_worker(cluster: Cluster) -> None:
    target = cluster.checkpoint.with_name("target")
    cluster.checkpoint.rename(target)
    other = target.with_name("other")
    shutil.copytree(target, other)
    write_weights(other)
    cluster.checkpoint.symlink_to(target)
    worker = cluster.worker()
    engine, (job_id,) = begin(cluster, worker)
    cluster.checkpoint.unlink()
    cluster.checkpoint.symlink_to(other)
    engine.kill()
    job = cluster.finished(job_id)
    cluster.checkpoint.unlink()
    cluster.checkpoint.symlink_to(target)
    cluster.assert_undisturbed(job)
    assert worker.returncode is None


@pytest.mark.slow
def test_new_steps_in_the_folder_and_a_new_loss_do_not_change_a_running_worker(cluster: Cluster) -> None:
    worker = cluster.worker()
    engine, (job_id,) = begin(cluster, worker)
    meta = json.loads((cluster.checkpoint / META).read_text())
    (cluster.checkpoint / META).write_text(json.dumps(meta | {"val_loss": 0.1}))
    shutil.copy(cluster.checkpoint / MODEL, cluster.checkpoint / "model_000200.pt")
    engine.kill()
    job = cluster.finished(job_id)
    (cluster.checkpoint / "model_000200.pt").unlink()
    cluster.assert_undisturbed(job)
    assert worker.returncode is None
