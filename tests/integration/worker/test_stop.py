"""How a worker ends: on a signal, after crashes of its engine, while Redis is away, and when it cannot serve."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import redis

from tasks.job import Status
from tasks.settings import Settings
from tasks.store.worker_store import WorkerStore
from tests.conftest import running_redis
from tests.integration.cluster import DEADLINE_S, TINY, Cluster, Engine, children, long_generation
from tests.integration.conftest import CARD, WORKER
from tests.integration.stack import START_S, Process, Stack, until

#: How long a stop may take here, in seconds. On a quiet machine it is under 2 s; the tests print the time.
STOP_S = 10.0


@pytest.fixture
def cluster(redis_url: str, tmp_path: Path) -> Iterator[Cluster]:
    cluster = Cluster(redis_url, tmp_path, slots="4")
    yield cluster
    cluster.close()


def end(worker: Process, number: signal.Signals = signal.SIGTERM) -> int:
    """Send a worker a signal to stop. Returns its exit code when it and its engine have ended."""
    engines = [Engine(worker)] if children(worker.pid) else []
    began = time.monotonic()
    worker.signal(number)
    code = worker.wait(STOP_S)
    print(f"ended {time.monotonic() - began:.2f} s after {number.name}")
    until(lambda: all(engine.gone for engine in engines), "the engine's end")
    return code


def test_a_worker_that_stops_releases_its_jobs_in_the_middle_of_a_text(cluster: Cluster) -> None:
    leaving = cluster.worker()
    engine = Engine(leaving)
    engine.stop()
    job_ids = cluster.submit_all(long_generation(seed) for seed in range(3))
    cluster.decode_a_little([engine], job_ids)
    staying = cluster.worker()
    logged = {job_id: cluster.token_ids(job_id) for job_id in job_ids}

    # Its engine is stopped: the release does not wait for a step.
    assert end(leaving) == 0

    for job_id in job_ids:
        job = cluster.finished(job_id)
        cluster.assert_undisturbed(job)
        assert (job.attempt, job.losses) == (2, 0)
        assert job.resumed_tokens >= len(logged[job_id]) >= 5
        assert cluster.token_ids(job_id)[: len(logged[job_id])] == logged[job_id]
    assert "Traceback" not in leaving.output
    # The worker that stops received none of their messages again.
    assert "Requeuing" not in leaving.output
    cluster.until_quiet()
    assert end(staying, signal.SIGINT) == 0


def test_jobs_of_the_only_worker_wait_at_the_head_of_the_queue_for_the_next_worker(cluster: Cluster) -> None:
    first = cluster.worker()
    engine = Engine(first)
    engine.stop()
    running = cluster.submit_all(long_generation(seed) for seed in range(4))
    cluster.decode_a_little([engine], running)
    waiting = cluster.submit_all(long_generation(seed, max_tokens=5) for seed in range(10, 20))
    # For Celery this is a cold shutdown, which would cancel the tasks.
    assert end(first, signal.SIGQUIT) == 0
    assert [cluster.job(job_id).status for job_id in [*running, *waiting]] == [Status.QUEUED] * 14
    assert not cluster.redis.exists("unacked")

    cluster.worker()
    jobs = [cluster.finished(job_id) for job_id in [*running, *waiting]]
    for job in jobs:
        cluster.assert_undisturbed(job)
    cluster.until_quiet()


def begin(cluster: Cluster, engine: Engine, seeds: range) -> list[str]:
    """Ids of new jobs that have some tokens. The engine is stopped."""
    engine.stop()
    job_ids = cluster.submit_all(long_generation(seed) for seed in seeds)
    cluster.decode_a_little([engine], job_ids)
    return job_ids


def assert_continued_with_a_loss(cluster: Cluster, job_ids: list[str]) -> None:
    """The jobs lose their engine, and end on the next one."""
    for job_id in job_ids:
        until(lambda job_id=job_id: cluster.job(job_id).losses == 1, "the loss", timeout_s=DEADLINE_S)  # type: ignore[misc]
    for job_id in job_ids:
        job = cluster.finished(job_id)
        cluster.assert_undisturbed(job)
        assert job.attempt == 2
        assert job.resumed_tokens >= 5
    cluster.until_quiet()


def test_an_engine_that_is_killed_or_hangs_is_replaced_and_the_third_crash_within_a_minute_ends_the_worker(
    cluster: Cluster,
) -> None:
    worker = cluster.worker(engine_silence_s="2")
    killed = Engine(worker)
    job_ids = begin(cluster, killed, range(3))
    killed.kill()
    assert_continued_with_a_loss(cluster, job_ids)
    assert '"engine_unresponsive"' not in worker.output

    hanging = Engine(worker)
    job_ids = begin(cluster, hanging, range(1))
    # It is stopped, and nothing resumes it.
    assert_continued_with_a_loss(cluster, job_ids)
    assert worker.output.count('"engine_unresponsive"') == 1
    assert worker.output.count('"engine_restarted"') == 2
    assert worker.returncode is None

    Engine(worker).kill()
    assert worker.wait(STOP_S) == 1
    assert "crashed 3 times within 60 s" in worker.output
    assert "signal 9" in worker.output
    assert "Traceback" not in worker.output


def test_a_worker_whose_name_was_taken_by_a_later_run_ends(cluster: Cluster) -> None:
    worker = cluster.worker()
    [info] = cluster.workers_now()
    with redis.Redis.from_url(cluster.stack.redis_url) as client:
        others = WorkerStore(client, Settings(redis_url=cluster.stack.redis_url, worker_ttl_s=600))
        later = replace(info, incarnation="later")
        others.register(later, replace(CARD, name=info.checkpoint, digest=info.digest))
    assert worker.wait(START_S) == 1
    assert "CELERIAC_WORKER_NAME" in worker.output
    assert "Traceback" not in worker.output
    assert [registered.incarnation for registered in cluster.workers_now()] == ["later"]


def test_a_worker_that_is_stopped_while_it_loads_ends_at_once(cluster: Cluster) -> None:
    worker = cluster.worker(wait=False)
    worker.wait_for_line('"loading"')
    until(lambda: children(worker.pid), "the engine process")
    assert end(worker) == 0
    assert "Traceback" not in worker.output


def test_a_worker_started_by_celerys_command_ends_on_ctrl_c(cluster: Cluster) -> None:
    command = "-m celery -A worker.app worker --pool threads --without-gossip --without-mingle"
    worker = cluster.stack.run("celery", sys.executable, *command.split(), checkpoint=str(TINY))
    worker.wait_for_line('"model_loaded"')
    engine = Engine(worker)
    job = cluster.finished(cluster.submit(long_generation(max_tokens=20)))
    cluster.assert_undisturbed(job)
    assert (job.worker or "").startswith(TINY.name)
    # A terminal sends the signal to the whole process group.
    os.killpg(worker.pid, signal.SIGINT)
    assert worker.wait(STOP_S) == 0
    until(lambda: engine.gone, "the engine's end")
    assert "Traceback" not in worker.output
    assert "engine_crashed" not in worker.output


def test_a_worker_waits_for_redis_at_its_start_and_after_an_outage(tmp_path: Path, socket_folder: Path) -> None:
    folder = socket_folder / "late"
    folder.mkdir()
    durable = ("--appendonly", "yes", "--appendfsync", "always")
    cluster = Cluster(f"unix://{folder}/redis.sock?db=0", tmp_path, slots="4")
    try:
        worker = cluster.worker(wait=False)
        worker.wait_for_line('"waiting_for_redis"')
        with running_redis(folder, *durable):
            worker.wait_for_line(" ready.")
            engine = Engine(worker)
            engine.stop()
            job_ids = cluster.submit_all(long_generation(seed) for seed in range(3))
            cluster.decode_a_little([engine], job_ids)
        engine.resume()
        worker.wait_for_line('"redis_away"')
        with running_redis(folder, *durable):
            for job_id in job_ids:
                job = cluster.finished(job_id)
                cluster.assert_undisturbed(job)
                assert job.attempt == 1
            cluster.assert_undisturbed(cluster.finished(cluster.submit(long_generation(10))))
            # Messages that were taken before the outage stay there until the visibility timeout.
            until(lambda: cluster.redis.hlen("unacked") == len(job_ids), "the end of the later message")
            engine.stop()
            held = cluster.submit(long_generation(11))
            cluster.decode_a_little([engine], [held])
        # The job cannot be released, so its lease runs out. The worker ends without hanging.
        end(worker)
        assert "Warning" not in worker.output
        with running_redis(folder, *durable):
            assert cluster.job(held).status is Status.RUNNING
            assert cluster.job(held).tokens >= 5
    finally:
        cluster.close()


def test_a_worker_whose_stop_hangs_exits_at_the_deadline(tmp_path: Path, socket_folder: Path) -> None:
    folder = socket_folder / "hanging"
    folder.mkdir()
    with running_redis(folder) as url:
        cluster = Cluster(f"{url}?db=0", tmp_path, slots="4")
        server = int(cluster.redis.info()["process_id"])
        try:
            worker = cluster.worker()
            engine = Engine(worker)
            engine.stop()
            job_id = cluster.submit(long_generation())
            cluster.decode_a_little([engine], [job_id])
            os.kill(server, signal.SIGSTOP)
            assert end(worker) == 1
            assert "stop_timed_out" in worker.output
        finally:
            os.kill(server, signal.SIGCONT)
            cluster.close()


def corrupt(folder: Path) -> None:
    model = folder / "model_000102.pt"
    model.write_bytes(model.read_bytes()[:1000])


def without_tokenizer(folder: Path) -> None:
    (folder / "tokenizer_config.json").write_text("{}")


def large_context(folder: Path) -> None:
    meta = folder / "meta_000102.json"
    content = json.loads(meta.read_text())
    content["model_config"]["sequence_len"] = 4096
    meta.write_text(json.dumps(content))


def unchanged(folder: Path) -> None:
    """Another worker serves other weights under the same name."""


#: For each name of a checkpoint that cannot be served: what its files need for that, and a part of the message.
NOT_SERVED: dict[str, tuple[Callable[[Path], None], str]] = {
    "corrupt": (corrupt, "model_000102.pt"),
    "conflict": (unchanged, "other weights under the name 'conflict'"),
    "no-tokenizer": (without_tokenizer, "tokenizer_config.json"),
    "small-memory": (large_context, "CELERIAC_KV_MEMORY_MB"),
}


@pytest.mark.parametrize(
    "names",
    [("corrupt", "conflict"), pytest.param(("no-tokenizer", "small-memory"), marks=pytest.mark.slow)],
    ids=" and ".join,
)
def test_a_checkpoint_that_cannot_be_served_ends_the_worker_with_a_clear_message(
    stack: Stack, tmp_path: Path, names: tuple[str, ...]
) -> None:
    with redis.Redis.from_url(stack.redis_url) as client:
        others = WorkerStore(client, Settings(redis_url=stack.redis_url, worker_ttl_s=600))
        others.register(replace(WORKER, checkpoint="conflict"), replace(CARD, name="conflict"))
    workers = {}
    for name in names:
        change, message = NOT_SERVED[name]
        shutil.copytree(TINY, tmp_path / name)
        change(tmp_path / name)
        workers[name] = stack.worker(str(tmp_path / name), wait=False, kv_memory_mb="1"), message
    assert_ended(workers)


def test_a_worker_without_a_checkpoint_ends_with_a_clear_message(stack: Stack) -> None:
    command = "-m celery -A worker.app worker --pool threads --without-gossip --without-mingle"
    assert_ended(
        {
            "unknown": (stack.worker("nowhere", wait=False), "no such folder"),
            "unset": (stack.run("celery", sys.executable, *command.split()), "CELERIAC_CHECKPOINT"),
        }
    )


def assert_ended(workers: dict[str, tuple[Process, str]]) -> None:
    """Assert that each worker ends with its message."""
    for name, (worker, message) in workers.items():
        assert worker.wait(START_S) == 1, f"{name}: {worker.output}"
        assert message in worker.output, name
        assert "Traceback" not in worker.output, name
