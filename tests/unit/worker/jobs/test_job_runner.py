"""The task body before a queue and an engine that do what the test wants."""

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
from worker.checkpoints.tokenizers.characters import CharacterTokenizer
from worker.engine.kv.budget import KvBudget
from worker.engine.request import SequenceRequest
from worker.engine_process.client import EngineDiedError
from worker.engine_process.supervisor import EngineSupervisor
from worker.jobs.job_runner import JobRunner, alone_tokens
from worker.jobs.kv_admission import KvGate
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
    """One job, and what was done with it."""

    def __init__(self) -> None:
        self.job: Job | None = JOB
        self.answer: Claimed | Refused = Claimed(1, (), ())
        self.claims: list[dict[str, Any]] = []
        self.requeued: list[str] = []
        self.releases: list[tuple[str, int, bool]] = []
        self.rejections: list[JobError] = []
        #: Jobs that do not wait, and who was asked for.
        self.done: set[str] = set()
        self.asked: list[list[str]] = []
        #: Called in each call: raises where Redis shall be away.
        self.before: Callable[[], None] = lambda: None
        self.before_claim: Callable[[], None] = lambda: None

    def read(self, job_id: str) -> Job | None:
        self.before()
        return self.job

    def claim(self, job_id: str, **fields: Any) -> Claimed | Refused:
        self.claims.append(fields)
        self.before_claim()
        return self.answer

    def requeue(self, job_id: str) -> None:
        self.before()
        self.requeued.append(job_id)

    def release(self, job_id: str, attempt: int, *, count_loss: bool = False) -> bool:
        self.releases.append((job_id, attempt, count_loss))
        return True

    def no_longer_queued(self, job_ids: Sequence[str]) -> set[str]:
        self.asked.append(list(job_ids))
        return self.done & set(job_ids)

    def reject(self, job_id: str, error: JobError, *, digest: str) -> None:
        self.before()
        self.rejections.append(error)


class Engine(EngineSupervisor):
    """Takes requests, and is there or not."""

    def __init__(self) -> None:
        self.requests: list[SequenceRequest] = []
        self.aborted: list[str] = []
        self.dead = False
        self.stops = False

    def submit(self, request: SequenceRequest) -> None:
        if self.dead:
            raise EngineDiedError("gone")
        self.requests.append(request)

    def abort(self, sequence_id: str) -> None:
        self.aborted.append(sequence_id)

    def wait_available(self) -> bool:
        return not self.stops


class Book(Publisher):
    """A publisher that finishes every job at once, unless it is told otherwise."""

    def __init__(self) -> None:
        self.adopted: list[RunningJob] = []
        self.handed_back: list[str] = []
        self.stopped = False
        self.finishes = True

    def adopt(self, job: RunningJob) -> None:
        if self.stopped:
            raise PublisherStoppedError
        self.adopted.append(job)
        if self.finishes:
            job.over.set()

    def hand_back(self, sequence_id: str) -> None:
        self.handed_back.append(sequence_id)
        self.adopted[-1].over.set()


class World:
    def __init__(self) -> None:
        self.store, self.engine, self.publisher = Store(), Engine(), Book()
        self.gate = KvGate(KvBudget(CARD.context * 2))
        self.runner = JobRunner(
            store=self.store,
            engine=self.engine,
            publisher=self.publisher,
            gate=self.gate,
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


def test_a_job_is_claimed_and_its_request_cut_to_the_context(world: World) -> None:
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
    assert world.gate.waiting == ()


def test_a_resumed_job_goes_on_with_what_is_in_its_log(world: World) -> None:
    world.store.job = replace(JOB, attempt=2)
    world.store.answer = Claimed(3, (1, 2), ("1", "2"))
    world.runner.run("job_1")
    [running], [request] = world.publisher.adopted, world.engine.requests
    assert (running.attempt, running.token_ids, running.pieces, running.logged) == (3, [1, 2], ["1", "2"], 2)
    assert request.generated == (1, 2)
    assert request.id == running.sequence_id


@pytest.mark.parametrize("status", [Status.RUNNING, Status.SUCCEEDED, Status.FAILED, Status.CANCELLED, Status.EXPIRED])
def test_a_message_of_a_job_that_does_not_wait_does_nothing(world: World, status: Status) -> None:
    world.store.job = replace(JOB, status=status)
    world.runner.run("job_1")
    assert world.store.claims == []


def test_a_message_of_a_job_that_is_gone_does_nothing(world: World) -> None:
    world.store.job = None
    world.runner.run("job_1")
    assert world.store.claims == []


def test_a_refused_claim_runs_nothing(world: World) -> None:
    world.store.answer = Refused("running")
    world.runner.run("job_1")
    assert world.publisher.adopted == []
    assert world.engine.requests == []


def test_all_tries_of_a_claim_have_one_name_so_that_a_lost_reply_is_no_second_claim(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.jobs.job_runner.RETRY_S", 0.001)
    world.store.before = away_for(1)
    world.store.before_claim = away_for(2)
    world.runner.run("job_1")
    assert len(world.store.claims) == 3
    assert len({claim["claim"] for claim in world.store.claims}) == 1
    assert len(world.engine.requests) == 1


def test_an_engine_that_died_gives_the_job_back_without_a_loss(world: World) -> None:
    world.publisher.finishes = False
    world.engine.dead = True
    world.runner.run("job_1")
    assert world.publisher.handed_back == ["job_1/1"]


def test_a_job_handed_back_before_the_engine_knew_it_is_stopped_there(world: World) -> None:
    world.runner.run("job_1")
    assert world.engine.aborted == ["job_1/1"]


def test_a_closed_worker_requeues_what_it_has_not_claimed(world: World) -> None:
    world.runner.close()
    world.runner.run("job_1")
    assert world.store.requeued == ["job_1"]
    assert world.store.claims == []


def test_a_job_that_waits_for_an_engine_that_never_comes_is_requeued(world: World) -> None:
    world.engine.stops = True
    world.runner.run("job_1")
    assert world.store.requeued == ["job_1"]
    assert world.gate.waiting == ()


def test_a_job_claimed_while_the_worker_stops_is_released_at_once(world: World) -> None:
    world.publisher.stopped = True
    world.runner.run("job_1")
    assert world.store.releases == [("job_1", 1, False)]


def test_a_closed_worker_without_redis_lets_the_body_go(world: World) -> None:
    world.runner.close()
    world.store.before = away_for(1000)
    world.runner.run("job_1")
    assert world.runner.wait_idle(0)
    assert world.store.requeued == []


@pytest.mark.parametrize(
    ("prompt", "code"),
    [("", None), ("1" * 63, ErrorCode.PROMPT_TOO_LONG), ("1" * 62, None)],
)
def test_prompts_at_the_edge_of_the_context(world: World, prompt: str, code: ErrorCode | None) -> None:
    world.store.job = replace(JOB, generation=replace(JOB.generation, prompt=prompt))
    world.runner.run("job_1")
    assert [error.code for error in world.store.rejections] == ([] if code is None else [code])
    assert len(world.engine.requests) == (1 if code is None else 0)


def test_our_own_fault_before_the_claim_fails_the_job_and_after_it_counts_a_loss(
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
    monkeypatch.setattr(world.engine, "submit", broken)
    world.runner.run("job_1")
    assert world.store.releases == [("job_1", 1, True)]


def test_bodies_inside_are_counted_until_they_return(world: World) -> None:
    world.publisher.finishes = False
    body = threading.Thread(target=world.runner.run, args=("job_1",))
    body.start()
    eventually(lambda: world.engine.requests)
    assert not world.runner.wait_idle(0)
    world.publisher.adopted[0].over.set()
    assert world.runner.wait_idle(DEADLINE_S)
    body.join()


@pytest.mark.parametrize(
    ("losses", "in_a_row", "max_tokens", "alone"),
    [(0, 0, 50, 0), (1, 1, 50, 1), (2, 1, 50, 2), (4, 2, 50, 8), (9, 1, 50, 50), (9, 0, 50, 0)],
)
def test_a_job_with_losses_since_its_last_token_runs_alone_for_longer_each_time(
    losses: int, in_a_row: int, max_tokens: int, alone: int
) -> None:
    job = replace(JOB, losses=losses, losses_in_a_row=in_a_row)
    assert alone_tokens(job, max_tokens) == alone


def test_a_suspect_lets_others_in_when_its_first_tokens_are_in_the_log(world: World) -> None:
    world.store.job = replace(JOB, attempt=2, losses=2, losses_in_a_row=2)
    world.store.answer = Claimed(3, (1,), ("1",))
    world.publisher.finishes = False
    suspect = threading.Thread(target=world.runner.run, args=("job_1",))
    suspect.start()
    eventually(lambda: world.publisher.adopted)
    [running] = world.publisher.adopted
    mate = threading.Thread(target=world.runner.run, args=("job_2",))
    mate.start()
    eventually(lambda: world.gate.waiting)
    running.token_ids += [2, 3]
    running.confirm(2)
    assert [ticket.name for ticket in world.gate.waiting] == ["job_2"]
    running.confirm(3)
    eventually(lambda: len(world.publisher.adopted) == 2)
    assert [request.alone for request in world.engine.requests] == [2, 2]
    for adopted in world.publisher.adopted:
        adopted.over.set()
    suspect.join(DEADLINE_S)
    mate.join(DEADLINE_S)
    assert world.runner.wait_idle(0)


def test_a_job_that_others_had_while_it_waited_here_is_given_back_and_read_anew(world: World) -> None:
    world.store.answer = Claimed(3, (), ())
    world.runner.run("job_1")
    assert world.store.releases == [("job_1", 3, False)]
    assert world.engine.requests == []


def test_a_job_that_is_over_while_it_waits_in_front_of_the_engine_leaves_without_a_claim(world: World) -> None:
    with world.gate.reserve(CARD.context * 2 - 1, 1):
        bodies = {name: threading.Thread(target=world.runner.run, args=(name,)) for name in ("job_1", "job_2")}
        for number, body in enumerate(bodies.values()):
            body.start()
            eventually(lambda line=number: len(world.gate.waiting) == line + 1)  # type: ignore[misc]
        world.store.done = {"job_1"}
        world.runner.withdraw_over()
        bodies["job_1"].join(DEADLINE_S)
        assert not bodies["job_1"].is_alive()
        assert world.store.asked == [["job_1", "job_2"]]
        assert (world.store.claims, world.store.requeued) == ([], [])
        assert [ticket.name for ticket in world.gate.waiting] == ["job_2"]
    bodies["job_2"].join(DEADLINE_S)
    assert len(world.store.claims) == 1


def test_nothing_is_asked_while_nobody_waits(world: World) -> None:
    world.runner.withdraw_over()
    assert world.store.asked == []
