"""What a worker's state says while it loads, replaces its engine and stops, and which messages it takes then."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis

from tasks.job import Status
from tasks.store import keys
from tests.integration.cluster import DEADLINE_S, Cluster, Engine, children, long_generation
from tests.integration.stack import CHECKPOINTS, SHIPPED, START_S, Process, until
from worker.transport.consumption import STALLED_AFTER_S

LONG = 1500
#: KV memory that has room for one job of this length, but not for two.
ONE_JOB = {"kv_memory_mb": "12"}


@pytest.fixture
def cluster(redis_url: str, tmp_path: Path) -> Iterator[Cluster]:
    cluster = Cluster(redis_url, tmp_path, CHECKPOINTS / SHIPPED, slots="2", heartbeat_s="0.2", engine_silence_s="600")
    yield cluster
    cluster.close()


def states(cluster: Cluster) -> list[str]:
    return sorted(info.state.value for info in cluster.workers_now())


def when_states(cluster: Cluster, *expected: str) -> None:
    until(lambda: states(cluster) == list(expected), f"workers that are {expected}", timeout_s=START_S)


def readiness(url: str) -> tuple[int, str]:
    answer = httpx.get(f"{url}/health/ready")
    return answer.status_code, answer.json()["state"]


def next_engine(worker: Process, earlier: Engine) -> Engine:
    """The engine that replaces `earlier`, stopped while it loads."""

    def started() -> Engine | None:
        engines = [pid for pid in children(worker.pid) if pid != earlier.pid]
        return Engine(worker) if engines and earlier.gone and earlier.pid not in children(worker.pid) else None

    engine = until(started, "the next engine", timeout_s=START_S)
    engine.stop()
    return engine


def test_a_worker_that_loads_is_starting_and_health_says_so(cluster: Cluster) -> None:
    _, url = cluster.stack.api()
    worker = cluster.worker(wait=False)
    until(lambda: children(worker.pid), "the engine process", timeout_s=START_S)
    engine = Engine(worker)
    engine.stop()
    when_states(cluster, "starting")
    assert readiness(url) == (503, "STARTING")
    assert httpx.post(f"{url}/generate", json={"prompt": "1+"}).status_code == 503
    [listed] = httpx.get(f"{url}/v1/workers").json()["data"]
    assert (listed["state"], listed["slots"], listed["device"]) == ("starting", 2, "auto")
    engine.resume()
    when_states(cluster, "idle")
    until(lambda: readiness(url) == (200, "READY"), "readiness", timeout_s=DEADLINE_S)
    assert httpx.post(f"{url}/generate", json={"prompt": "1+", "max_tokens": 3}).status_code == 200


def test_a_worker_that_replaces_its_engine_takes_no_messages_and_new_jobs_wait_for_it(cluster: Cluster) -> None:
    _, url = cluster.stack.api()
    worker = cluster.worker()
    first = Engine(worker)
    first.kill()
    engine = next_engine(worker, first)
    when_states(cluster, "starting")
    until(lambda: readiness(url) == (503, "STARTING"), "health", timeout_s=DEADLINE_S)
    assert httpx.get(f"{url}/health").json()["model_loaded"] is False
    job_ids = []
    for _ in range(5):
        answer = httpx.post(f"{url}/v1/jobs", json={"prompt": "1+", "max_tokens": 3})
        assert answer.status_code == 202
        job_ids.append(answer.json()["id"])
    # Nothing is dispatched to it, and it takes nothing that lies on the list.
    queue = keys.queue(cluster.checkpoint.name)
    assert cluster.redis.llen(queue) == 0
    # The last BRPOP, which was sent before the crash, has ended.
    beats = cluster.workers_now()[0].heartbeat_at
    until(lambda: cluster.workers_now()[0].heartbeat_at > beats + 1000, "a second", timeout_s=DEADLINE_S)
    cluster.redis.lpush(queue, cluster.redis.hget(keys.job(job_ids[0]), "message"))  # type: ignore[arg-type]
    beats = cluster.workers_now()[0].heartbeat_at
    until(lambda: cluster.workers_now()[0].heartbeat_at > beats + 2000, "two seconds", timeout_s=DEADLINE_S)
    assert cluster.redis.llen(queue) == 1
    assert not cluster.redis.exists("unacked")
    engine.resume()
    for job_id in job_ids:
        assert cluster.finished(job_id).status is Status.SUCCEEDED
    cluster.until_quiet()


def test_messages_that_were_taken_and_not_claimed_go_to_another_worker(cluster: Cluster) -> None:
    worker = cluster.worker(**ONE_JOB)
    first = Engine(worker)
    (running,) = cluster.begin([first], [long_generation(1, max_tokens=LONG)])
    waiting = cluster.submit(long_generation(2, max_tokens=LONG))
    # The first job holds the memory. The second one was taken, and waits for it.
    until(lambda: cluster.redis.hlen("unacked") == 2, "both messages", timeout_s=DEADLINE_S)
    first.kill()
    engine = next_engine(worker, first)
    until(lambda: not cluster.redis.exists("unacked"), "the return of both messages", timeout_s=DEADLINE_S)
    assert [cluster.job(job_id).status for job_id in (running, waiting)] == [Status.QUEUED] * 2
    assert [cluster.job(job_id).losses for job_id in (running, waiting)] == [1, 0]
    other = cluster.worker()
    for job_id in (running, waiting):
        job = cluster.finished(job_id)
        cluster.assert_undisturbed(job)
    assert {cluster.job(job_id).worker for job_id in (running, waiting)} == {cluster.heartbeat(other).name}  # type: ignore[union-attr]
    engine.resume()
    when_states(cluster, "idle", "idle")


@contextmanager
def commands(cluster: Cluster, until_one_contains: str) -> Iterator[list[str]]:
    """The commands that Redis executes inside the `with` block, up to the first one that contains this text."""
    seen: list[str] = []
    client: Any = redis.Redis.from_url(cluster.settings.redis_url)
    with client.monitor() as monitor:

        def listen() -> None:
            for command in monitor.listen():
                seen.append(command["command"])
                if until_one_contains in command["command"]:
                    return

        listener = threading.Thread(target=listen)
        listener.start()
        yield seen
        listener.join(DEADLINE_S)
        assert not listener.is_alive()
    client.close()


def test_a_worker_that_stops_is_draining_until_it_is_gone(cluster: Cluster) -> None:
    worker = cluster.worker()
    job_ids = cluster.begin([Engine(worker)], [long_generation(1, max_tokens=LONG)])
    heartbeat = cluster.heartbeat(worker)
    assert heartbeat is not None
    key = keys.worker(heartbeat.name)
    with commands(cluster, f"DEL {key}") as seen:
        worker.terminate()
    written = [command for command in seen if command.startswith(f"HSET {key}")]
    states = [command.split(" state ")[1].split()[0] for command in written]
    assert states[-1] == "draining"
    first = states.index("draining")
    assert set(states[first:]) == {"draining"}
    # Its jobs were released after that: no job was dispatched to it again.
    release = next(i for i, command in enumerate(seen) if "status queued" in command and job_ids[0] in command)
    assert seen.index(written[first]) < release
    assert cluster.workers_now() == []
    assert worker.returncode == 0


def test_a_worker_that_would_consume_another_queue_does_not_start(cluster: Cluster) -> None:
    command = "-m celery -A worker.app worker --pool threads --without-gossip --without-mingle -Q other"
    worker = cluster.stack.run("celery", sys.executable, *command.split(), checkpoint=str(cluster.checkpoint))
    assert worker.wait(START_S) == 2
    assert "--queues cannot be used" in worker.output
    assert "Traceback" not in worker.output


@pytest.mark.slow
@pytest.mark.parametrize("jobs", [0, 2, 5], ids=["idle", "full", "full, and messages wait"])
def test_a_consumer_that_has_nothing_to_take_is_not_stalled(cluster: Cluster, jobs: int) -> None:
    worker = cluster.worker(lease_s="60")
    engine = Engine(worker)
    engine.stop()
    held = cluster.submit_all(long_generation(seed, max_tokens=5) for seed in range(jobs))
    until(lambda: cluster.redis.hlen("unacked") == min(jobs, 2), "the messages", timeout_s=DEADLINE_S)
    seen: set[str] = set()
    begin = cluster.workers_now()[0].heartbeat_at

    def watched() -> bool:
        [info] = cluster.workers_now()
        seen.add(info.state.value)
        return info.heartbeat_at - begin > 1000 * (STALLED_AFTER_S + 5)

    until(watched, "some time", timeout_s=START_S)
    assert seen <= {"idle", "busy"}
    engine.resume()
    for job_id in held:
        assert cluster.finished(job_id).status is Status.SUCCEEDED
