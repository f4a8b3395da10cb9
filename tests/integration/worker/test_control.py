"""Celery's control commands on a real worker: those that would stall jobs are refused, the others work."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tasks.celery_app import TASK_NAME, make_app
from tasks.job import Status
from tasks.store import keys
from tests.integration.cluster import DEADLINE_S, Cluster, Engine, long_generation, own_cluster
from tests.integration.stack import CHECKPOINTS, SHIPPED, START_S, Process, until
from worker.transport.control import REFUSED

QUEUE = keys.queue(SHIPPED)
#: Commands that are refused, with arguments: some as Celery's command line takes them, some as they are sent.
TYPED = {"rate_limit": (TASK_NAME, "1/h"), "cancel_consumer": (QUEUE,)}
SENT: dict[str, dict[str, Any]] = {
    "time_limit": {"task_name": TASK_NAME, "soft": 1, "hard": 2},
    "add_consumer": {"queue": "another"},
    "pool_grow": {"n": 5},
    "pool_shrink": {"n": 1},
    "autoscale": {"max": 9, "min": 1},
    "pool_restart": {},
    "revoke_by_stamped_headers": {"headers": {"a": "b"}},
}


#: Settings of the workers.
SETTINGS = {"slots": "2", "heartbeat_s": "0.2"}


@pytest.fixture
def cluster(redis_url: str, tmp_path: Path) -> Iterator[Cluster]:
    """A cluster whose processes a test may kill and stop."""
    cluster = Cluster(redis_url, tmp_path, CHECKPOINTS / SHIPPED, **SETTINGS)
    yield cluster
    cluster.close()


@pytest.fixture(scope="module")
def shared() -> Iterator[Cluster]:
    """A cluster with one worker, which works after each test as before."""
    with own_cluster(CHECKPOINTS / SHIPPED, **SETTINGS) as cluster:
        cluster.worker()
        yield cluster


def control(cluster: Cluster, *arguments: str) -> Process:
    """Run `celery -A worker.app control`. Returns when it has ended."""
    command = (sys.executable, "-m", "celery", "-A", "worker.app", "control", "--timeout", "5", *arguments)
    process = cluster.stack.run("control", *command, checkpoint=str(cluster.checkpoint))
    process.wait(START_S)
    return process


def broadcast(cluster: Cluster, command: str, **arguments: Any) -> dict[str, Any]:
    """The reply of the only worker to a command."""
    replies = make_app(cluster.settings).control.broadcast(
        command, arguments=arguments, reply=True, timeout=DEADLINE_S, limit=1
    )
    [reply] = replies
    [content] = reply.values()
    found: dict[str, Any] = content
    return found


def test_commands_that_would_stall_jobs_are_refused_and_jobs_run(shared: Cluster) -> None:
    worker = shared.stack.processes[0]
    _, url = shared.stack.api()
    for command, typed in TYPED.items():
        process = control(shared, command, *typed)
        assert f"{command} is refused: " in process.output, process.output
    for command, sent in SENT.items():
        assert f"{command} is refused: " in broadcast(shared, command, **sent)["error"]
    assert REFUSED.keys() == TYPED.keys() | SENT.keys()
    # Each job needs a message and a slot: more jobs than slots show that both still work.
    for job_id in shared.submit_all(long_generation(seed, max_tokens=5) for seed in range(6)):
        assert shared.finished(job_id).status is Status.SUCCEEDED
    assert httpx.get(f"{url}/health/ready").json()["state"] in ("READY", "BUSY")
    assert "Traceback" not in worker.output


def test_jobs_run_that_another_node_calls_revoked(shared: Cluster) -> None:
    """A node that starts sends the tasks that it knows to be revoked. Celery would skip their messages."""
    worker = shared.stack.processes[0]
    engine = Engine(worker)
    engine.stop()
    held = shared.submit_all(long_generation(seed, max_tokens=5) for seed in range(5))
    broadcast(shared, "hello", from_node="other@host", revoked=held)
    engine.resume()
    for job_id in held:
        assert shared.finished(job_id).status is Status.SUCCEEDED


def test_without_events_jobs_run(shared: Cluster) -> None:
    assert "disabled" in broadcast(shared, "disable_events")["ok"]
    assert shared.finished(shared.submit(long_generation(1, max_tokens=5))).status is Status.SUCCEEDED
    assert "enabled" in broadcast(shared, "enable_events")["ok"]


def test_shutdown_replies_and_stops_the_worker_as_a_signal_does(cluster: Cluster) -> None:
    worker = cluster.worker()
    (job_id,) = cluster.begin([Engine(worker)], [long_generation(1, max_tokens=1500)])
    process = control(cluster, "shutdown")
    assert "the worker stops" in process.output, process.output
    assert worker.wait(DEADLINE_S) == 0
    job = cluster.job(job_id)
    assert (job.status, job.losses) == (Status.QUEUED, 0)
    assert job.tokens >= 5
    assert '"draining"' in worker.output
    assert cluster.workers_now() == []
    until(lambda: not cluster.redis.exists("unacked"), "the end of all messages", timeout_s=DEADLINE_S)


#: A worker with Celery's own commands, which notices a stalled consumer early.
UNPROTECTED = """
import sys
from celery.worker.control import Panel
own = {name: Panel.data[name] for name in ("cancel_consumer", "add_consumer")}
from worker import app
from worker.transport import consumption
Panel.data.update(own)
consumption.STALLED_AFTER_S = 4.0
sys.exit(app.run_worker())
"""


def test_health_knows_that_a_consumer_takes_no_messages(cluster: Cluster) -> None:
    worker = cluster.stack.run("unprotected", sys.executable, "-c", UNPROTECTED, checkpoint=str(cluster.checkpoint))
    worker.wait_for_line(" ready.")
    _, url = cluster.stack.api()

    def readiness() -> str:
        state: str = httpx.get(f"{url}/health/ready").json()["state"]
        return state

    assert readiness() == "READY"
    assert "ok" in broadcast(cluster, "cancel_consumer", queue=QUEUE)
    until(lambda: readiness() == "STALLED", "STALLED", timeout_s=DEADLINE_S)
    assert [info.state for info in cluster.workers_now()] == ["stalled"]
    assert httpx.post(f"{url}/v1/jobs", json={"prompt": "1+"}).status_code == 503
    waiting = cluster.submit(long_generation(1, max_tokens=5))
    assert cluster.redis.llen(QUEUE) == 0, "nothing is dispatched to it"
    assert "ok" in broadcast(cluster, "add_consumer", queue=QUEUE)
    assert cluster.finished(waiting).status is Status.SUCCEEDED
    until(lambda: readiness() == "READY", "READY", timeout_s=DEADLINE_S)
