"""Celery's list, and kombu's hash of unacknowledged messages, contain what is no message: the worker goes on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tasks.celery_app import make_app
from tasks.job import Status
from tasks.job_id import new_job_id
from tasks.message import Renderer
from tasks.settings import Settings
from tasks.store import keys
from tests.helpers.bad_messages import SECRET, bad_messages
from tests.integration.cluster import TINY, Cluster, long_generation, own_cluster
from tests.integration.stack import START_S, Process, until

QUEUE = keys.queue(TINY.name)


#: Settings of the workers.
SETTINGS = {"slots": "2", "visibility_timeout_s": "1", "dispatch_timeout_s": "1"}


@pytest.fixture
def cluster(redis_url: str, tmp_path: Path) -> Iterator[Cluster]:
    """A cluster without a worker."""
    cluster = Cluster(redis_url, tmp_path, **SETTINGS)
    yield cluster
    cluster.close()


@pytest.fixture(scope="module")
def shared() -> Iterator[Cluster]:
    """A cluster with one worker, which goes on after each test."""
    with own_cluster(**SETTINGS) as cluster:
        cluster.worker()
        yield cluster


def message_of_no_job() -> str:
    return Renderer(make_app(Settings())).render(new_job_id(), QUEUE)


def logged(worker: Process, event: str, *, since: int = 0) -> list[dict[str, object]]:
    """The log lines about an event, without the first `since` characters of the output."""
    return [json.loads(line) for line in worker.output[since:].splitlines() if f'"{event}"' in line]


def dropped(worker: Process, *, since: int = 0) -> list[dict[str, object]]:
    """The log lines about dropped messages."""
    return logged(worker, "message_dropped", since=since)


def assert_goes_on(cluster: Cluster, worker: Process, *, since: int = 0) -> None:
    """A job succeeds, no message is left, and the worker has logged neither errors of its own nor contents."""
    assert cluster.finished(cluster.submit(long_generation(max_tokens=5))).status is Status.SUCCEEDED
    until(
        lambda: not cluster.redis.exists(QUEUE, "unacked", "unacked_index"),
        "the end of all messages",
        timeout_s=START_S,
    )
    assert worker.returncode is None
    assert "Traceback" not in worker.output[since:]
    assert SECRET not in worker.output
    assert logged(worker, "redis_refuses", since=since) == []


def test_what_is_no_message_is_dropped_and_logged(shared: Cluster) -> None:
    [worker] = shared.stack.processes
    since = len(worker.output)
    bad = bad_messages(message_of_no_job())
    shared.redis.lpush(QUEUE, *bad.values())
    until(lambda: len(dropped(worker, since=since)) == len(bad), "a log line for each", timeout_s=START_S)
    assert [line["bytes"] for line in dropped(worker, since=since)] == [len(raw) for raw in bad.values()]
    assert all(line["reason"] and line["where"] == QUEUE for line in dropped(worker, since=since))
    assert_goes_on(shared, worker, since=since)


def test_an_unacknowledged_item_that_is_no_message_is_dropped_and_the_others_are_put_back(cluster: Cluster) -> None:
    good = json.loads(message_of_no_job())
    bad = [*bad_messages(json.dumps(good)).values()]
    entries = [b'["x"]', b"{}", b"[{}, 1, 2]", json.dumps([good, "", [QUEUE]]).encode(), *bad[:20]]
    for raw in bad[20:]:
        try:
            entries.append(json.dumps([json.loads(raw), "", QUEUE]).encode())
        except (ValueError, RecursionError):
            entries.append(raw)
    sound = json.dumps([good, "", QUEUE]).encode()
    for index, entry in enumerate([*entries, sound]):
        cluster.redis.hset("unacked", f"tag-{index}", entry)
        cluster.redis.zadd("unacked_index", {f"tag-{index}": index + 1})
    worker = cluster.worker()
    assert_goes_on(cluster, worker)
    assert len(dropped(worker)) == len(entries)
    job_id = good["headers"]["id"]
    until(lambda: job_id in worker.output, "the job of the sound message")


@pytest.mark.parametrize("key", [QUEUE, "unacked", "unacked_index"])
def test_keys_of_celery_with_a_wrong_type_are_replaced(shared: Cluster, key: str) -> None:
    [worker] = shared.stack.processes
    shared.redis.set(key, "text")
    assert shared.finished(shared.submit(long_generation(max_tokens=5))).status is Status.SUCCEEDED
    assert worker.returncode is None
    until(lambda: key in {line["key"] for line in logged(worker, "key_damaged")}, "a log line", timeout_s=START_S)
