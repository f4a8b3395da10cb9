"""What a real Flower shows of real workers: the states of jobs, the queue, and no password."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis

from tasks.job import Status, TimeLimits
from tasks.store import keys
from tests.conftest import running_redis
from tests.helpers.requests import make_generation
from tests.integration.cluster import DEADLINE_S, TINY, Cluster, Engine, long_generation, stopped
from tests.integration.stack import START_S, Process, Stack, free_port, until

# It takes long: the processes of each test need most of its time.
pytestmark = pytest.mark.slow

LOGIN = ("user", "entrance")
QUEUE = keys.queue(TINY.name)


class Flower:
    """A Flower process and its API. The stack ends the process."""

    def __init__(self, stack: Stack) -> None:
        port = free_port()
        self.process = stack.run("flower", sys.executable, "-m", "celeriac", "flower", "--port", str(port))
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{port}", auth=LOGIN, timeout=30)
        until(self._responds, f"Flower:\n{self.process.output}", timeout_s=START_S)

    def _responds(self) -> bool:
        assert self.process.returncode is None, self.process.output
        with suppress(httpx.TransportError):
            return self.client.get("/healthcheck").status_code == 200
        return False

    def close(self) -> None:
        self.client.close()

    def get(self, path: str) -> httpx.Response:
        return self.client.get(path)

    def until_online(self, worker: Process) -> None:
        """Wait until Flower receives the events of a worker."""
        until(lambda: str(worker.pid) in self.workers(), "the worker in Flower", timeout_s=START_S)

    def workers(self) -> str:
        return json.dumps(self.get("/api/workers?refresh=true").json())

    def task(self, job_id: str, state: str) -> dict[str, Any]:
        """The task of a job, once it has this state. No other final state may come before."""
        seen: list[dict[str, Any]] = []

        def there() -> dict[str, Any] | None:
            tasks: dict[str, dict[str, Any]] = self.get("/api/tasks").json()
            if (task := tasks.get(job_id)) is None:
                return None
            seen.append(task)
            assert task["state"] in ("PENDING", "RECEIVED", "STARTED", state), task
            return task if task["state"] == state else None

        found = until(there, f"{state} of {job_id} in Flower", timeout_s=DEADLINE_S, interval_s=0.1)
        assert found["routing_key"] == QUEUE
        return found


@pytest.fixture(autouse=True)
def login(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a login, Flower's API is closed."""
    monkeypatch.setenv("FLOWER_BASIC_AUTH", ":".join(LOGIN))


@pytest.fixture
def held() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with running_redis(tmp_path) as url:
        cluster = Cluster(f"{url}?db=0", tmp_path, slots="2")
        try:
            yield cluster
        finally:
            cluster.close()


def test_flower_shows_how_each_job_ended(cluster: Cluster, held: ExitStack) -> None:
    worker = cluster.worker()
    flower = held.enter_context(closing(Flower(cluster.stack)))
    flower.until_online(worker)

    succeeded = cluster.submit(long_generation(max_tokens=3))
    flower.task(succeeded, "SUCCESS")

    rejected = cluster.submit(make_generation(prompt="1" * 300, max_tokens=5))
    task = flower.task(rejected, "FAILURE")
    assert cluster.finished(rejected).status is Status.FAILED
    assert "prompt_too_long" in task["exception"]
    assert not task["traceback"]

    engine = Engine(worker)
    with stopped([engine]):
        late = cluster.submit(long_generation(), TimeLimits(run_timeout_ms=1))
        cancelled = cluster.submit(long_generation())
        for job_id in (late, cancelled):
            cluster.when(job_id, Status.RUNNING)
        waiting = [cluster.submit(long_generation()) for _ in range(2)]
        for job_id in (cancelled, waiting[0]):
            cluster.cancel(job_id)
    assert cluster.finished(late).status is Status.FAILED
    assert "deadline_exceeded" in flower.task(late, "FAILURE")["exception"]
    flower.task(cancelled, "REVOKED")
    flower.task(waiting[0], "REVOKED")
    flower.task(waiting[1], "SUCCESS")
    assert cluster.finished(waiting[0]).status is Status.CANCELLED
    # None of this is an error of the worker.
    assert "Traceback" not in worker.output
    assert "raised" not in worker.output


def test_flower_shows_a_job_that_another_worker_continues(cluster: Cluster, held: ExitStack) -> None:
    first = cluster.worker()
    flower = held.enter_context(closing(Flower(cluster.stack)))
    flower.until_online(first)
    (job_id,) = cluster.begin([engine := Engine(first)], [long_generation()])
    second = cluster.worker()
    cluster.when(job_id, Status.RUNNING)
    assert first.terminate() == 0
    assert cluster.finished(job_id).status is Status.SUCCEEDED
    task = flower.task(job_id, "SUCCESS")
    beat = cluster.heartbeat(second)
    assert beat is not None
    assert task["worker"] == beat.name
    assert engine.pid != second.pid


def test_the_queue_has_its_own_name_in_celerys_tools(cluster: Cluster, held: ExitStack) -> None:
    worker = cluster.worker()
    flower = held.enter_context(closing(Flower(cluster.stack)))
    flower.until_online(worker)
    (info,) = until(lambda: [*flower.get("/api/workers?refresh=true").json().values()], "a worker")
    (queue,) = info["active_queues"]
    assert (queue["name"], queue["routing_key"], queue["exchange"]["name"]) == (QUEUE, QUEUE, QUEUE)
    assert [one["name"] for one in flower.get("/api/queues/length").json()["active_queues"]] == [QUEUE]
    assert not cluster.redis.exists("_kombu.binding.celery")


# Passwords

#: It has characters that are written with % in a URL.
PASSWORD = "s3cr3t/p#ss@word"
ENCODED = "s3cr3t%2Fp%23ss%40word"


@pytest.mark.parametrize(
    "form",
    [
        "unix://:{0}@{1}?db=0",
        pytest.param("unix://{1}?db=0&password={0}", marks=pytest.mark.slow),
        pytest.param("redis://:{0}@127.0.0.1:{2}/0", marks=pytest.mark.slow),
        pytest.param("redis://127.0.0.1:{2}/0?password={0}", marks=pytest.mark.slow),
    ],
)
def test_no_tool_shows_the_password_of_redis(tmp_path: Path, held: ExitStack, form: str) -> None:
    port = free_port()
    plain = held.enter_context(running_redis(tmp_path, "--port", str(port)))
    with redis.Redis.from_url(plain) as client:
        client.config_set("requirepass", PASSWORD)
    url = form.format(ENCODED, plain.removeprefix("unix://"), port)
    stack = Stack(url, tmp_path, slots="2")
    held.callback(stack.close)
    worker = stack.worker(str(TINY))
    flower = held.enter_context(closing(Flower(stack)))
    flower.until_online(worker)
    shown = {"Flower's workers": flower.workers()}
    (name,) = flower.get("/api/workers").json()
    for path in (f"/worker/{name}", "/broker", "/workers", "/tasks", "/api/queues/length"):
        response = flower.get(path)
        assert response.status_code == 200, path
        shown[path] = response.text
    for command in (
        ("inspect", "stats"),
        ("inspect", "conf"),
        ("inspect", "report"),
        ("inspect", "active_queues"),
        ("report",),
    ):
        shown[" ".join(command)] = celery(stack, *command)
    for process in (worker, flower.process):
        shown[process.name] = process.output
    for cmdline in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            shown[str(cmdline)] = cmdline.read_bytes().decode(errors="replace")
    for place, text in shown.items():
        assert "s3cr3t" not in text, place
    assert "broker" in shown["inspect stats"]


def celery(stack: Stack, *command: str) -> str:
    """The output of Celery's own command."""
    process = stack.run("celery", sys.executable, "-m", "celery", "-A", "worker.app", *command)
    with suppress(subprocess.TimeoutExpired):
        process.wait(START_S)
    assert process.returncode == 0, process.output
    return process.output
