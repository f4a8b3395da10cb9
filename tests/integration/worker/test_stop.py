"""How a worker ends: told to stop, its engine killed, Redis away, a checkpoint that cannot be served."""

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

#: What a stop may take here. On a quiet machine it is under 2 s; the tests print what it was.
STOP_S = 10.0


@pytest.fixture
def cluster(redis_url: str, tmp_path: Path) -> Iterator[Cluster]:
    cluster = Cluster(redis_url, tmp_path, slots="4")
    yield cluster
    cluster.close()


def end(worker: Process, number: signal.Signals = signal.SIGTERM) -> int:
    """The exit code of a worker that is told to stop. No process is left of it."""
    engines = [Engine(worker)] if children(worker.pid) else []
    began = time.monotonic()
    worker.signal(number)
    code = worker.wait(STOP_S)
    print(f"gone {time.monotonic() - began:.2f} s after {number.name}")
    until(lambda: all(engine.gone for engine in engines), "the engine's end")
    return code


def test_a_worker_told_to_stop_hands_its_jobs_over_in_mid_sentence(cluster: Cluster) -> None:
    leaving = cluster.worker()
    engine = Engine(leaving)
    engine.stop()
    job_ids = cluster.submit_all(long_generation(seed) for seed in range(3))
    cluster.decode_a_little([engine], job_ids)
    staying = cluster.worker()
    shown = {job_id: cluster.token_ids(job_id) for job_id in job_ids}

    # Its engine stands still: handing over does not wait for a step.
    assert end(leaving) == 0

    for job_id in job_ids:
        job = cluster.finished(job_id)
        cluster.assert_undisturbed(job)
        assert (job.attempt, job.losses) == (2, 0)
        assert job.resumed_tokens >= len(shown[job_id]) >= 5
        assert cluster.token_ids(job_id)[: len(shown[job_id])] == shown[job_id]
    assert "Traceback" not in leaving.output
    # None of them came back to the one that leaves.
    assert "Requeuing" not in leaving.output
    cluster.until_quiet()
    assert end(staying, signal.SIGINT) == 0


def test_jobs_of_the_only_worker_wait_at_the_head_for_the_next(cluster: Cluster) -> None:
    first = cluster.worker()
    engine = Engine(first)
    engine.stop()
    running = cluster.submit_all(long_generation(seed) for seed in range(4))
    cluster.decode_a_little([engine], running)
    waiting = cluster.submit_all(long_generation(seed, max_tokens=5) for seed in range(10, 20))
    # Celery's cold shutdown, which would cancel what runs.
    assert end(first, signal.SIGQUIT) == 0
    assert [cluster.job(job_id).status for job_id in [*running, *waiting]] == [Status.QUEUED] * 14
    assert not cluster.redis.exists("unacked")

    cluster.worker()
    jobs = [cluster.finished(job_id) for job_id in [*running, *waiting]]
    for job in jobs:
        cluster.assert_undisturbed(job)
    cluster.until_quiet()


def test_a_killed_engine_is_replaced_and_its_jobs_go_on_with_a_loss_each(cluster: Cluster) -> None:
    worker = cluster.worker()
    engine = Engine(worker)
    engine.stop()
    job_ids = cluster.submit_all(long_generation(seed) for seed in range(3))
    cluster.decode_a_little([engine], job_ids)
    engine.kill()
    for job_id in job_ids:
        until(lambda job_id=job_id: cluster.job(job_id).losses == 1, "the loss", timeout_s=DEADLINE_S)  # type: ignore[misc]
    for job_id in job_ids:
        job = cluster.finished(job_id)
        cluster.assert_undisturbed(job)
        assert job.attempt == 2
        assert job.resumed_tokens >= 5
    cluster.until_quiet()
    assert worker.returncode is None
    assert end(worker) == 0


def test_an_engine_that_hangs_is_killed_and_its_jobs_go_on(cluster: Cluster) -> None:
    worker = cluster.worker(engine_silence_s="1.5")
    engine = Engine(worker)
    engine.stop()
    job_id = cluster.submit(long_generation())
    until(lambda: cluster.job(job_id).losses == 1, "the loss", timeout_s=DEADLINE_S)
    job = cluster.finished(job_id)
    cluster.assert_undisturbed(job)
    assert job.attempt == 2
    assert '"engine_unresponsive"' in worker.output
    assert end(worker) == 0


def test_three_quick_deaths_of_the_engine_end_the_worker(cluster: Cluster) -> None:
    worker = cluster.worker()
    for death in range(3):
        if death:
            worker.wait_for_line('"engine_restarted"')
            until(lambda seen=death: worker.output.count('"engine_restarted"') == seen, "the restart")  # type: ignore[misc]
        Engine(worker).kill()
    assert worker.wait(STOP_S) == 1
    assert "crashed 3 times within 60 s" in worker.output
    assert "signal 9" in worker.output
    assert "Traceback" not in worker.output


def test_a_worker_told_to_stop_while_it_loads_is_gone_at_once(cluster: Cluster) -> None:
    worker = cluster.worker(wait=False)
    worker.wait_for_line('"loading"')
    until(lambda: children(worker.pid), "the engine process")
    assert end(worker) == 0
    assert "Traceback" not in worker.output


def test_the_worker_by_celerys_own_command_and_ctrl_c(cluster: Cluster) -> None:
    command = "-m celery -A worker.app worker --pool threads --without-gossip --without-mingle"
    worker = cluster.stack.run("celery", sys.executable, *command.split(), checkpoint=str(TINY))
    worker.wait_for_line('"model_loaded"')
    engine = Engine(worker)
    job = cluster.finished(cluster.submit(long_generation(max_tokens=20)))
    cluster.assert_undisturbed(job)
    assert (job.worker or "").startswith(TINY.name)
    # A terminal sends it to the whole group.
    os.killpg(worker.pid, signal.SIGINT)
    assert worker.wait(STOP_S) == 0
    until(lambda: engine.gone, "the engine's end")
    assert "Traceback" not in worker.output
    assert "engine_crashed" not in worker.output


def test_redis_may_come_late_go_and_come_back(tmp_path: Path, socket_folder: Path) -> None:
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
            # What was taken before the outage stays listed there until the visibility timeout tidies up.
            until(lambda: cluster.redis.hlen("unacked") == len(job_ids), "the end of the later message")
            engine.stop()
            held = cluster.submit(long_generation(11))
            cluster.decode_a_little([engine], [held])
        # Nobody can be told, so the lease is left to run out; and nothing hangs.
        end(worker)
        assert "Warning" not in worker.output
        with running_redis(folder, *durable):
            assert cluster.job(held).status is Status.RUNNING
            assert cluster.job(held).tokens >= 5
    finally:
        cluster.close()


def test_a_stop_that_hangs_is_ended_the_hard_way(tmp_path: Path, socket_folder: Path) -> None:
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


def as_it_is(folder: Path) -> None:
    """Served by others with other weights, under the same name."""


def test_what_cannot_be_served_ends_the_worker_with_one_clear_line(stack: Stack, tmp_path: Path) -> None:
    cases: dict[str, tuple[Callable[[Path], None], str]] = {
        "corrupt": (corrupt, "model_000102.pt"),
        "no-tokenizer": (without_tokenizer, "tokenizer_config.json"),
        "small-memory": (large_context, "CELERIAC_KV_MEMORY_MB"),
        "conflict": (as_it_is, "other weights under the name 'conflict'"),
    }
    with redis.Redis.from_url(stack.redis_url) as client:
        others = WorkerStore(client, Settings(redis_url=stack.redis_url, worker_ttl_s=600))
        others.register(replace(WORKER, checkpoint="conflict"), replace(CARD, name="conflict"))
    command = "-m celery -A worker.app worker --pool threads --without-gossip --without-mingle"
    workers = {
        "unknown": (stack.worker("nowhere", wait=False), "no such folder"),
        "unset": (stack.run("celery", sys.executable, *command.split()), "CELERIAC_CHECKPOINT"),
    }
    for name, (spoil, message) in cases.items():
        shutil.copytree(TINY, tmp_path / name)
        spoil(tmp_path / name)
        workers[name] = stack.worker(str(tmp_path / name), wait=False, kv_memory_mb="1"), message
    for name, (worker, message) in workers.items():
        assert worker.wait(START_S) == 1, f"{name}: {worker.output}"
        assert message in worker.output, name
        assert "Traceback" not in worker.output, name
