"""Two real workers on a real Redis: jobs run, are shared, cancelled and refused; messages carry only ids."""

from __future__ import annotations

import base64
import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tasks.celery_app import make_app
from tasks.generation import FinishReason
from tasks.job import ErrorCode, Status
from tasks.message import Renderer
from tasks.store import keys
from tests.conftest import running_redis
from tests.helpers.requests import make_generation
from tests.helpers.same_text import assert_same_text
from tests.integration.cluster import DEADLINE_S, TINY, Cluster, Engine, long_generation, stopped
from tests.integration.stack import Process, until

SLOTS = 20
#: Messages on Celery's list for each worker in addition to its slots.
SPARE = 2
CHARACTERS = "0123456789+-HBL.\n"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Two workers, and a checkpoint with a vocabulary file, so that unknown characters are refused."""
    checkpoint = tmp_path_factory.mktemp("checkpoints") / TINY.name
    shutil.copytree(TINY, checkpoint)
    vocabulary = {"vocab_chars": list(CHARACTERS), "special_tokens": ["<|bos|>"], "vocab_size": 32}
    (checkpoint / "tokenizer_config.json").write_text(json.dumps(vocabulary))
    folder = Path(tempfile.mkdtemp(prefix="cel-"))
    with running_redis(folder) as url:
        cluster = Cluster(f"{url}?db=0", folder, checkpoint, slots=str(SLOTS))
        try:
            cluster.workers(2)
            yield cluster
        finally:
            cluster.close()
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def workers(cluster: Cluster) -> list[Process]:
    return cluster.stack.processes


@pytest.fixture
def engines(cluster: Cluster, workers: list[Process]) -> list[Engine]:
    """The engine processes, idle."""
    cluster.until_quiet()
    return [Engine(worker) for worker in workers]


def arguments(message: dict[str, Any]) -> tuple[list[str], dict[str, str]]:
    """The arguments in a Celery message."""
    args, kwargs, _ = json.loads(base64.b64decode(message["body"]))
    return args, kwargs


def test_one_job_from_start_to_end(cluster: Cluster) -> None:
    job = cluster.finished(cluster.submit(long_generation(prompt="12+3", max_tokens=50)))
    cluster.assert_undisturbed(job)
    assert job.attempt == 1
    assert job.losses == 0
    assert job.resumed_tokens == 0
    assert job.prompt_tokens == len("12+3") + 1
    assert job.created_at <= (job.started_at or 0) <= (job.first_token_at or 0) <= (job.finished_at or 0)


def test_forty_jobs_at_once_have_the_same_texts_as_alone_and_the_workers_share_them(cluster: Cluster) -> None:
    generations = [
        make_generation(
            prompt=f"{seed}+{7 * seed}",
            max_tokens=20 + seed,
            temperature=0.0 if seed % 5 == 0 else 0.8,
            seed=seed,
            top_k=10 if seed % 3 == 0 else None,
            top_p=0.9 if seed % 4 == 0 else None,
            stop_on_newline=seed % 7 == 0,
            stop=("9.",) if seed % 6 == 0 else (),
            ignore_eos=seed % 2 == 0,
        )
        for seed in range(2 * SLOTS)
    ]
    jobs = [cluster.finished(job_id) for job_id in cluster.submit_all(generations)]
    for job in jobs:
        cluster.assert_undisturbed(job)
    assert len({job.worker for job in jobs}) == 2


def test_more_jobs_than_slots_fill_both_batches_and_the_others_wait(cluster: Cluster, engines: list[Engine]) -> None:
    with stopped(engines):
        held = cluster.submit_all(long_generation(seed, max_tokens=20) for seed in range(2 * SLOTS + 2 * SPARE + 1))
        for job_id in held[: 2 * SLOTS]:
            cluster.when(job_id, Status.RUNNING)
        positions = [cluster.job(job_id).position for job_id in held[2 * SLOTS :]]
        assert positions == list(range(2 * SPARE + 1))
        workers = [cluster.job(job_id).worker for job_id in held[: 2 * SLOTS]]
        assert sorted(map(workers.count, set(workers))) == [SLOTS, SLOTS]
    for job_id in held:
        assert cluster.finished(job_id).status is Status.SUCCEEDED


def test_a_cancelled_running_job_keeps_its_text(cluster: Cluster, engines: list[Engine]) -> None:
    with stopped(engines):
        job_id = cluster.submit(long_generation())
        cluster.when(job_id, Status.RUNNING)
        cluster.decode_a_little(engines, [job_id])
        cluster.cancel(job_id)
        assert cluster.job(job_id).status is Status.RUNNING
        cluster.until_cancel_received(job_id)
    job = cluster.finished(job_id)
    assert (job.status, job.finish_reason) == (Status.CANCELLED, FinishReason.CANCELLED)
    assert 5 <= job.tokens < job.generation.sampling.max_tokens
    assert job.completion == assert_same_text(cluster.checkpoint, job.generation, cluster.token_ids(job_id))
    assert job.cancellation is not None
    assert job.cancellation.latency_ms is not None


@pytest.mark.parametrize("how", ["revoke", "revoke and terminate", "terminate"])
def test_celerys_own_cancel_cancels_running_and_waiting_jobs(cluster: Cluster, engines: list[Engine], how: str) -> None:
    control = make_app(cluster.settings).control
    with stopped(engines):
        held = cluster.submit_all(long_generation(seed, max_tokens=20) for seed in range(2 * SLOTS + 2 * SPARE + 1))
        for job_id in held[: 2 * SLOTS]:
            cluster.when(job_id, Status.RUNNING)
        running, listed, waiting = held[0], held[-2], held[-1]
        if how == "terminate":
            control.terminate([running, listed, waiting])
        else:
            control.revoke([running, listed, waiting], terminate=how == "revoke and terminate")
        cluster.when(listed, Status.CANCELLED)
        cluster.when(waiting, Status.CANCELLED)
        cluster.until_cancel_received(running)
    assert cluster.finished(running).status is Status.CANCELLED
    for job_id in held[1:-2]:
        assert cluster.finished(job_id).status is Status.SUCCEEDED
    cluster.until_quiet()


@pytest.mark.parametrize(
    ("prompt", "code", "names"),
    [
        ("1" * 255, ErrorCode.PROMPT_TOO_LONG, "256 tokens"),
        ("12x3", ErrorCode.INVALID_REQUEST, "'x' at index 2"),
    ],
)
def test_a_prompt_that_cannot_run_fails_with_its_code_before_it_is_claimed(
    cluster: Cluster, prompt: str, code: ErrorCode, names: str
) -> None:
    job = cluster.finished(cluster.submit(long_generation(prompt=prompt)))
    assert job.status is Status.FAILED
    assert job.error is not None
    assert job.error.code is code
    assert names in job.error.message
    assert job.attempt == 0


def test_the_longest_prompt_gets_one_token(cluster: Cluster) -> None:
    job = cluster.finished(cluster.submit(long_generation(prompt="1" * 254)))
    assert (job.status, job.tokens, job.finish_reason) == (Status.SUCCEEDED, 1, FinishReason.LENGTH)


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"stop": ("\ud800",)}, ErrorCode.RECORD_DAMAGED),
        ({"max_tokens": 0}, ErrorCode.UNSUPPORTED),
        ({"top_k": -1}, ErrorCode.UNSUPPORTED),
    ],
)
def test_a_job_that_cannot_run_fails_and_the_worker_continues(
    cluster: Cluster, change: dict[str, Any], code: ErrorCode
) -> None:
    """Jobs that the API never accepts."""
    request: dict[str, Any] = {"prompt": "1", "max_tokens": 5, "temperature": 0, "seed": 1, **change}
    job = cluster.finished(cluster.submit(make_generation(**request)))
    assert job.status is Status.FAILED
    assert job.error is not None
    assert job.error.code is code
    cluster.assert_undisturbed(cluster.finished(cluster.submit(long_generation(max_tokens=5))))


def test_messages_carry_only_the_job_id(cluster: Cluster, engines: list[Engine]) -> None:
    secret = "31415926"
    with stopped(engines):
        held = cluster.submit_all(long_generation(1, prompt=secret, max_tokens=5) for _ in range(2 * SLOTS + 2 * SPARE))
        for job_id in held[: 2 * SLOTS]:
            cluster.when(job_id, Status.RUNNING)
        listed: Any = cluster.redis.lrange(keys.queue(cluster.checkpoint.name), 0, -1)
        taken: Any = cluster.redis.hvals("unacked")
        waiting = [json.loads(message) for message in reversed(listed)]
        messages = waiting + [json.loads(entry)[0] for entry in taken]
        assert [arguments(message) for message in waiting] == [([job_id], {}) for job_id in held[2 * SLOTS :]]
        assert sorted(arguments(message)[0][0] for message in messages) == sorted(held)
        for message in messages:
            assert secret not in json.dumps(message) + base64.b64decode(message["body"]).decode()
    for job_id in held:
        cluster.finished(job_id)


def test_a_duplicate_message_of_a_running_job_does_nothing(cluster: Cluster, engines: list[Engine]) -> None:
    message = Renderer(make_app(cluster.settings))
    with stopped(engines):
        job_id = cluster.submit(long_generation(max_tokens=30))
        cluster.when(job_id, Status.RUNNING)
        for _ in range(3):
            cluster.redis.lpush(
                keys.queue(cluster.checkpoint.name), message.render(job_id, keys.queue(cluster.checkpoint.name))
            )
        until(lambda: cluster.redis.hlen("unacked") == 1, "the end of the duplicate messages", timeout_s=DEADLINE_S)
    job = cluster.finished(job_id)
    cluster.assert_undisturbed(job)
    assert job.attempt == 1


def test_a_message_of_a_finished_or_an_unknown_job_does_nothing(cluster: Cluster) -> None:
    done = cluster.finished(cluster.submit(long_generation(max_tokens=5)))
    message = Renderer(make_app(cluster.settings))
    for job_id in (done.id, "job_00000000000000000000000000"):
        cluster.redis.lpush(
            keys.queue(cluster.checkpoint.name), message.render(job_id, keys.queue(cluster.checkpoint.name))
        )
    cluster.until_quiet()
    assert cluster.job(done.id) == done


def test_only_engine_processes_load_torch(workers: list[Process], engines: list[Engine]) -> None:
    for worker, engine in zip(workers, engines, strict=True):
        assert "libtorch" not in Path(f"/proc/{worker.pid}/maps").read_text()
        assert "libtorch" in Path(f"/proc/{engine.pid}/maps").read_text()


def test_the_log_has_the_start_and_the_end_of_each_job_and_no_prompt(cluster: Cluster, workers: list[Process]) -> None:
    job_id = cluster.submit(long_generation(prompt="27182818", max_tokens=5))
    cluster.finished(job_id)
    cluster.until_quiet()
    log = "".join(worker.output for worker in workers)
    assert log.count(f'"{job_id}"') == 2  # started, finished
    assert "27182818" not in log
    assert "celery.app.trace" not in log
