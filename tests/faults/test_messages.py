"""Celery messages that are delivered again, twice or never: one generation and one result for each job."""

from __future__ import annotations

import json
from collections import Counter
from contextlib import closing

from kombu.transport.redis import Channel

from tasks.celery_app import make_app
from tasks.store import keys
from tests.faults.conftest import lasting
from tests.integration.cluster import Cluster, Engine
from tests.integration.stack import Process, until

VISIBILITY_TIMEOUT_S = 1
SLOTS = 4
#: Messages on Celery's list in addition to the slots.
SPARE = 2


def restore_overdue(cluster: Cluster) -> None:
    """Put messages past the visibility timeout back on the list, as every worker does every 10 s."""
    settings = cluster.settings.model_copy(update={"visibility_timeout_s": VISIBILITY_TIMEOUT_S})
    with closing(make_app(settings).connection()) as connection:
        channel: Channel = connection.default_channel
        channel.qos.restore_visible()


def message(cluster: Cluster, job_id: str) -> bytes:
    """The Celery message of a job that is not over."""
    found: bytes = cluster.redis.hget(keys.job(job_id), "message")
    return found


def times_skipped(worker: Process, job_ids: list[str]) -> int:
    """How often the worker skipped a message of each of these jobs because the job was running."""
    lines = [json.loads(line) for line in worker.output.splitlines() if '"job_skipped"' in line]
    skipped = Counter(line["job_id"] for line in lines if line["why"] == "running")
    return min(skipped[job_id] for job_id in job_ids)


def test_a_job_runs_once_if_its_messages_are_lost_or_doubled(cluster: Cluster) -> None:
    worker = cluster.worker(visibility_timeout_s=str(VISIBILITY_TIMEOUT_S))
    engine = Engine(worker)
    queue = keys.queue(cluster.checkpoint.name)

    # While all slots are taken, messages stay on the list. One of them is lost, and all others are doubled.
    running = cluster.begin([engine], (lasting(seed) for seed in range(SLOTS)))
    waiting = cluster.submit_all(lasting(seed) for seed in range(SLOTS, SLOTS + SPARE))
    until(lambda: cluster.redis.llen(queue) == SPARE, "the messages on the list")
    doubled = [message(cluster, job_id) for job_id in [*running, *waiting]]
    doubled.remove(cluster.redis.rpop(queue))
    cluster.redis.rpush(queue, *doubled)
    engine.resume()
    assert_once(cluster, worker, [*running, *waiting])

    # While a slot is free, messages of running jobs are taken as well: messages that are delivered again because the
    # job takes longer than the visibility timeout, and doubled ones.
    running = cluster.begin([engine], (lasting(seed) for seed in range(SLOTS - 1)))
    overdue = cluster.redis.time()[0] + VISIBILITY_TIMEOUT_S + 1
    until(lambda: cluster.redis.time()[0] > overdue, "the end of the visibility timeout")
    restore_overdue(cluster)
    until(lambda: times_skipped(worker, running) == 1, "a second delivery of each")
    cluster.redis.rpush(queue, *(message(cluster, job_id) for job_id in running))
    until(lambda: times_skipped(worker, running) == 2, "a third delivery of each")
    engine.resume()
    assert_once(cluster, worker, running)


def assert_once(cluster: Cluster, worker: Process, job_ids: list[str]) -> None:
    """Assert that each job has one generation and one result, and that no message is left."""
    jobs = [cluster.finished(job_id) for job_id in job_ids]
    cluster.assert_undisturbed(*jobs)
    for job in jobs:
        assert (job.attempt, job.losses) == (1, 0)
        assert worker.output.count(f'"job_id": "{job.id}", "attempt"') == 1
        assert worker.output.count(f'"job_id": "{job.id}", "reason"') == 1
    cluster.until_quiet()
