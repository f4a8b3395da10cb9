"""The task body, with a queue and an engine that the tests control."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError

from tasks.job import ErrorCode, Job, JobError, Status
from tasks.store.worker_store import Claimed, Refused, WorkerStore
from tests.helpers.fake_worker import CARD
from tests.helpers.job_objects import QUEUED
from tests.helpers.requests import make_generation
from worker.checkpoints.tokenizers import TokenizerFailedError
from worker.checkpoints.tokenizers.characters import CharacterTokenizer
from worker.engine.kv.budget import KvBudget
from worker.engine_process.client import EngineCrashedError
from worker.engine_process.messages import SequenceRequest
from worker.engine_process.supervisor import EngineSupervisor
from worker.jobs.job_runner import JobRunner, tokens_alone
from worker.jobs.kv_admission import KvAdmission
from worker.jobs.publisher import Publisher, PublisherStoppedError
from worker.jobs.running_job import RunningJob

DEADLINE_S = 10.0
JOB = replace(
    QUEUED,
    id="job_1",
    checkpoint=CARD.name,
    digest=CARD.digest,
    generation=make_generation(prompt="12+3", max_tokens=50, temperature=0.0, seed=7),
)


class Store(WorkerStore):
    """One job, and the calls that were made for it."""

    def __init__(self) -> None:
        self.job: Job | None = JOB
        self.answer: Claimed | Refused = Claimed(1, (), ())
        self.claims: list[dict[str, Any]] = []
        self.requeued: list[str] = []
        self.releases: list[tuple[str, int, bool]] = []
        self.rejections: list[JobError] = []
        #: Jobs that `no_longer_queued` returns, and the job ids of each call of it.
        self.ended: set[str] = set()
        self.no_longer_queued_calls: list[list[str]] = []
        #: Called first in each call; raises while Redis is away.
        self.before: Callable[[], None] = lambda: None
        self.before_claim: Callable[[], None] = lambda: None

    def read(self, job_id: str) -> Job | None:
        self.before()
        return None if self.job is None else replace(self.job, id=job_id)

    def claim(self, job_id: str, **fields: Any) -> Claimed | Refused:
        self.claims.append(fields)
        self.before_claim()
        return self.answer

    def requeue(self, job_id: str) -> None:
        self.before()
        self.requeued.append(job_id)

    def release(self, job_id: str, attempt: int, *, count_loss: bool = False, out_of_memory: bool = False) -> bool:
        self.releases.append((job_id, attempt, count_loss))
        return True

    def no_longer_queued(self, job_ids: Sequence[str]) -> set[str]:
        self.no_longer_queued_calls.append(list(job_ids))
        return self.ended & set(job_ids)

    def reject(self, job_id: str, error: JobError, *, digest: str) -> None:
        self.before()
        self.rejections.append(error)


class Engine(EngineSupervisor):
    """Accepts requests unless it crashed, and is available unless it is being replaced."""

    def __init__(self) -> None:
        self.requests: list[SequenceRequest] = []
        self.aborted: list[str] = []
        self.crashed = False
        self.reloading = False

    def add_request(self, request: SequenceRequest) -> None:
        if self.crashed:
            raise EngineCrashedError("gone")
        self.requests.append(request)

    def abort(self, sequence_id: str) -> None:
        self.aborted.append(sequence_id)

    @property
    def available(self) -> bool:
        return not self.reloading


class FakePublisher(Publisher):
    """Finishes every job at once, unless `finishes` is False."""

    def __init__(self) -> None:
        self.added: list[RunningJob] = []
        self.released: list[str] = []
        self.stopped = False
        self.finishes = True

    def add(self, job: RunningJob) -> None:
        if self.stopped:
            raise PublisherStoppedError
        self.added.append(job)
        if self.finishes:
            job.over.set()

    def release(self, sequence_id: str) -> None:
        self.released.append(sequence_id)
        self.added[-1].over.set()


class World:
    """A job runner with its store, engine, publisher and admission."""

    def __init__(self) -> None:
        self.store, self.engine, self.publisher = Store(), Engine(), FakePublisher()
        self.admission = KvAdmission(KvBudget(CARD.context * 2))
        self.runner = JobRunner(
            store=self.store,
            engine=self.engine,
            publisher=self.publisher,
            admission=self.admission,
            tokenizer=CharacterTokenizer.guide(),
            card=CARD,
            worker="worker@host",
            incarnation="first",
        )


@pytest.fixture
def world() -> World:
    return World()


def eventually(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def away_for(calls: int) -> Callable[[], None]:
    left = iter(range(calls))

    def before() -> None:
        if next(left, None) is not None:
            raise RedisConnectionError("away")

    return before


def test_a_job_is_claimed_and_its_max_tokens_are_cut_to_the_context(world: World) -> None:
    world.store.job = replace(
        JOB,
        generation=replace(
            JOB.generation, sampling=replace(JOB.generation.sampling, max_tokens=2000, stop=("B",), top_k=5)
        ),
    )
    world.runner.run("job_1")
    [request] = world.engine.requests
    assert request.prompt == (17, 1, 2, 10, 3)
    assert request.sampling.max_tokens == CARD.context - 5
    assert (request.sampling.stop, request.sampling.top_k, request.generated) == (("B",), 5, ())
    assert world.store.claims[0]["prompt_tokens"] == 5
    assert world.runner.wait_idle(0)
    assert world.admission.waiting == ()


def test_a_resumed_job_continues_with_the_tokens_in_its_log(world: World) -> None:
    world.store.job = replace(JOB, attempt=2)
    world.store.answer = Claimed(3, (1, 2), ("1", "2"))
    world.runner.run("job_1")
    [running], [request] = world.publisher.added, world.engine.requests
    assert (running.attempt, running.token_ids, running.pieces, running.logged) == (3, [1, 2], ["1", "2"], 2)
    assert request.generated == (1, 2)
    assert request.id == running.sequence_id


@pytest.mark.parametrize("status", [Status.RUNNING, Status.SUCCEEDED, Status.FAILED, Status.CANCELLED, Status.EXPIRED])
def test_a_message_of_a_job_that_does_not_wait_does_nothing(world: World, status: Status) -> None:
    world.store.job = replace(JOB, status=status)
    world.runner.run("job_1")
    assert world.store.claims == []


def test_a_message_of_a_job_that_does_not_exist_does_nothing(world: World) -> None:
    world.store.job = None
    world.runner.run("job_1")
    assert world.store.claims == []


def test_a_refused_claim_runs_nothing(world: World) -> None:
    world.store.answer = Refused("running")
    world.runner.run("job_1")
    assert world.publisher.added == []
    assert world.engine.requests == []


def test_a_claim_is_repeated_under_one_name_so_that_a_lost_reply_causes_no_second_claim(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.jobs.job_runner.RETRY_S", 0.001)
    world.store.before = away_for(1)
    world.store.before_claim = away_for(2)
    world.runner.run("job_1")
    assert len(world.store.claims) == 3
    assert len({claim["claim"] for claim in world.store.claims}) == 1
    assert len(world.engine.requests) == 1


def test_a_job_is_released_without_a_loss_if_the_engine_crashed_before_it_got_the_request(world: World) -> None:
    world.publisher.finishes = False
    world.engine.crashed = True
    world.runner.run("job_1")
    assert world.publisher.released == ["job_1/1"]


def test_a_job_that_was_released_before_the_engine_got_it_is_aborted_there(world: World) -> None:
    world.runner.run("job_1")
    assert world.engine.aborted == ["job_1/1"]


def test_a_closed_runner_requeues_a_job_that_it_has_not_claimed(world: World) -> None:
    world.runner.close()
    world.runner.run("job_1")
    assert world.store.requeued == ["job_1"]
    assert world.store.claims == []


def test_a_runner_that_finishes_its_jobs_waits_for_those_that_run_and_requeues_the_others(world: World) -> None:
    world.publisher.finishes = False
    running = threading.Thread(target=world.runner.run, args=("job_1",))
    running.start()
    eventually(lambda: world.publisher.added)
    finished = threading.Event()
    retiring = threading.Thread(target=lambda: (world.runner.finish_running(), finished.set()))
    retiring.start()
    eventually(lambda: world.admission.closed)
    world.runner.run("job_2")
    assert world.store.requeued == ["job_2"]
    assert not finished.is_set()
    # A task body that is over still asks how its job has ended.
    assert not world.runner.closed
    world.publisher.added[0].over.set()
    assert finished.wait(DEADLINE_S)
    running.join()
    retiring.join()


def test_a_job_is_requeued_while_the_engine_is_replaced(world: World) -> None:
    world.engine.reloading = True
    world.runner.run("job_1")
    assert world.store.requeued == ["job_1"]
    assert world.admission.waiting == ()


def test_a_job_claimed_while_the_worker_stops_is_released_at_once(world: World) -> None:
    world.publisher.stopped = True
    world.runner.run("job_1")
    assert world.store.releases == [("job_1", 1, False)]


def test_a_closed_runner_without_redis_lets_the_task_body_return(world: World) -> None:
    world.runner.close()
    world.store.before = away_for(1000)
    world.runner.run("job_1")
    assert world.runner.wait_idle(0)
    assert world.store.requeued == []


@pytest.mark.parametrize(
    ("prompt", "code"),
    [("", None), ("1" * 63, ErrorCode.PROMPT_TOO_LONG), ("1" * 62, None)],
)
def test_prompts_that_almost_fill_the_context(world: World, prompt: str, code: ErrorCode | None) -> None:
    world.store.job = replace(JOB, generation=replace(JOB.generation, prompt=prompt))
    world.runner.run("job_1")
    assert [error.code for error in world.store.rejections] == ([] if code is None else [code])
    assert len(world.engine.requests) == (1 if code is None else 0)


def test_a_bug_before_the_claim_fails_the_job_and_a_bug_after_it_counts_a_loss(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken_before(*_: object, **__: object) -> None:
        raise TypeError("broken")

    with monkeypatch.context() as patch:
        patch.setattr("worker.jobs.job_runner.answer_tokens", broken_before)
        world.runner.run("job_1")
    assert [error.code for error in world.store.rejections] == [ErrorCode.INTERNAL]

    def broken(request: SequenceRequest) -> None:
        raise TypeError("broken")

    world.store.job = JOB
    monkeypatch.setattr(world.engine, "add_request", broken)
    world.runner.run("job_1")
    assert world.store.releases == [("job_1", 1, True)]


class PanicException(BaseException):
    """As PyO3 raises it for a panic in Rust: no Exception."""


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (PanicException("called `Result::unwrap()` on an `Err` value"), ErrorCode.INTERNAL),
        (SystemExit(1), ErrorCode.INTERNAL),
        (RecursionError(), ErrorCode.INTERNAL),
        (MemoryError(), ErrorCode.OUT_OF_MEMORY),
    ],
)
def test_no_error_leaves_the_task_body(
    world: World, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: ErrorCode
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr("worker.jobs.job_runner.prompt_of", broken)
        world.runner.run("job_1")
    assert [rejected.code for rejected in world.store.rejections] == [code]
    monkeypatch.setattr(world.runner._tokenizer, "decoder", broken)
    world.runner.run("job_2")
    assert world.store.releases == [("job_2", 1, True)]
    assert world.runner.job_ids() == set()
    assert world.runner.wait_idle(0)
    assert world.admission.waiting == ()


def test_a_job_whose_prompt_the_tokenizer_cannot_encode_fails_as_invalid(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(text: str) -> None:
        raise TokenizerFailedError("BacktrackLimitExceeded")

    monkeypatch.setattr(world.runner._tokenizer, "encode", fail)
    world.runner.run("job_1")
    [rejection] = world.store.rejections
    assert (rejection.code, rejection.retryable) == (ErrorCode.INVALID_REQUEST, False)
    assert "BacktrackLimitExceeded" in rejection.message


def test_wait_idle_waits_until_all_task_bodies_have_returned(world: World) -> None:
    world.publisher.finishes = False
    body = threading.Thread(target=world.runner.run, args=("job_1",))
    body.start()
    eventually(lambda: world.engine.requests)
    assert not world.runner.wait_idle(0)
    world.publisher.added[0].over.set()
    assert world.runner.wait_idle(DEADLINE_S)
    body.join()


@pytest.mark.parametrize(
    ("losses", "in_a_row", "max_tokens", "alone"),
    [(0, 0, 50, 0), (1, 1, 50, 1), (2, 1, 50, 2), (4, 2, 50, 8), (9, 1, 50, 50), (9, 0, 50, 0)],
)
def test_a_job_with_losses_since_its_last_token_runs_alone_for_longer_after_each_loss(
    losses: int, in_a_row: int, max_tokens: int, alone: int
) -> None:
    job = replace(JOB, losses=losses, losses_in_a_row=in_a_row)
    assert tokens_alone(job, max_tokens) == alone


def test_other_jobs_are_admitted_when_the_first_tokens_of_a_suspect_are_in_the_log(world: World) -> None:
    world.store.job = replace(JOB, attempt=2, losses=2, losses_in_a_row=2)
    world.store.answer = Claimed(3, (1,), ("1",))
    world.publisher.finishes = False
    suspect = threading.Thread(target=world.runner.run, args=("job_1",))
    suspect.start()
    eventually(lambda: world.publisher.added)
    [running] = world.publisher.added
    other = threading.Thread(target=world.runner.run, args=("job_2",))
    other.start()
    eventually(lambda: world.admission.waiting)
    running.token_ids += [2, 3]
    running.confirm(2)
    assert [reservation.job_id for reservation in world.admission.waiting] == ["job_2"]
    running.confirm(3)
    eventually(lambda: len(world.publisher.added) == 2)
    assert [request.alone for request in world.engine.requests] == [2, 2]
    for job in world.publisher.added:
        job.over.set()
    suspect.join(DEADLINE_S)
    other.join(DEADLINE_S)
    assert world.runner.wait_idle(0)


def test_a_job_that_another_worker_ran_while_it_waited_here_is_released(world: World) -> None:
    world.store.answer = Claimed(3, (), ())
    world.runner.run("job_1")
    assert world.store.releases == [("job_1", 3, False)]
    assert world.engine.requests == []


def test_a_job_that_ends_while_it_waits_for_memory_is_removed_without_a_claim(world: World) -> None:
    with world.admission.reserve(CARD.context * 2 - 1, 1, job_id="job_0"):
        bodies = {name: threading.Thread(target=world.runner.run, args=(name,)) for name in ("job_1", "job_2")}
        for number, body in enumerate(bodies.values()):
            body.start()
            eventually(lambda count=number: len(world.admission.waiting) == count + 1)  # type: ignore[misc]
        world.store.ended = {"job_1"}
        world.runner.remove_ended()
        bodies["job_1"].join(DEADLINE_S)
        assert not bodies["job_1"].is_alive()
        assert world.store.no_longer_queued_calls == [["job_1", "job_2"]]
        assert (world.store.claims, world.store.requeued) == ([], [])
        assert [reservation.job_id for reservation in world.admission.waiting] == ["job_2"]
    bodies["job_2"].join(DEADLINE_S)
    assert len(world.store.claims) == 1


def test_redis_is_not_asked_while_no_job_waits(world: World) -> None:
    world.runner.remove_ended()
    assert world.store.no_longer_queued_calls == []


@pytest.mark.parametrize(
    ("unknown", "temperature", "named"), [({"min_p": 0.1}, 0.0, "min_p"), ({}, 1e9, "temperature")]
)
def test_a_job_that_a_newer_api_accepted_fails_with_a_clear_code(
    world: World, unknown: dict[str, float], temperature: float, named: str
) -> None:
    sampling = replace(JOB.generation.sampling, temperature=temperature)
    world.store.job = replace(JOB, generation=replace(JOB.generation, sampling=sampling, unknown=unknown))
    world.runner.run("job_1")
    [error] = world.store.rejections
    assert (error.code, error.retryable) == (ErrorCode.UNSUPPORTED, True)
    assert named in error.message
    assert "update the workers" in error.message
    assert world.engine.requests == []
