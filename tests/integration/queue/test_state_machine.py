"""Random sequences of transitions by two workers and the reaper, compared with a simple model."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    invariant,
    multiple,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tasks.job import ErrorCode, Job, Status, TimeLimits
from tasks.job_id import new_job_id
from tasks.redis_client.connections import make_async, make_sync
from tasks.settings import Settings
from tasks.store import keys
from tasks.store.job_store import JobStore
from tasks.store.new_job import NewJob
from tasks.store.scripts import LIMITS
from tasks.store.worker_store import Claimed, WorkerStore
from tasks.token_log import Entry
from tasks.worker_info import WorkerInfo, WorkerState
from tests.helpers.requests import make_generation
from tests.integration.conftest import CARD, FAILED, WORKER, append, finish

#: Few slots, and the second worker takes jobs only at times, so that jobs also wait in the backlog.
WORKERS = (
    replace(WORKER, name="tiny-1@host", slots=1),
    replace(WORKER, name="tiny-2@host", slots=1, state=WorkerState.DRAINING),
)


MAX_TOKENS = 8
#: A time limit that never passes in a test, in ms.
NEVER_MS = 3_600_000


@dataclass
class Modelled:
    """The expected state of a job."""

    status: Status = Status.QUEUED
    attempt: int = 0
    text: str = ""
    losses: int = 0
    losses_in_a_row: int = 0
    priority: int = 5
    cancel_requested: bool = False
    lease_expired: bool = False
    #: Whether it has a deadline, and whether that has passed.
    limited: bool = False
    overdue: bool = False
    deleted: bool = False
    #: Attempt marks as (number of tokens before the mark, attempt).
    marks: list[tuple[int, int]] = field(default_factory=list)

    @property
    def waits(self) -> bool:
        return self.status is Status.QUEUED and not self.deleted

    @property
    def runs(self) -> bool:
        return self.status is Status.RUNNING and not self.deleted

    def lose(self) -> None:
        """Its worker was lost."""
        if self.cancel_requested:
            self.status = Status.CANCELLED
            return
        self.losses += 1
        self.losses_in_a_row += 1
        too_often = self.losses_in_a_row >= LIMITS["MAX_LOSSES_IN_A_ROW"] or self.losses >= LIMITS["MAX_LOSSES"]
        self.status = Status.FAILED if too_often or self.overdue else Status.QUEUED

    def release(self) -> None:
        """Its worker releases it."""
        if self.cancel_requested:
            self.status = Status.CANCELLED
        else:
            self.status = Status.FAILED if self.overdue else Status.QUEUED

    def expire(self) -> None:
        """Its deadline passes while it waits."""
        self.status = Status.EXPIRED if self.attempt == 0 else Status.FAILED


@dataclass(frozen=True)
class Claim:
    """A claim that succeeded once. It may be fenced by now."""

    job_id: str
    attempt: int


class QueueMachine(RuleBasedStateMachine):
    """Two workers and one queue. Each run starts with an empty database."""

    url: ClassVar[str]
    run: ClassVar[Callable[..., Any]]

    jobs = Bundle("jobs")
    claims = Bundle("claims")

    def __init__(self) -> None:
        super().__init__()
        config = Settings(redis_url=self.url).model_copy(
            update={"reap_every_s": 0.0, "reap_gap_s": 600.0, "lease_s": 600.0, "worker_ttl_s": 600.0}
        )
        self.redis = make_sync(config)
        self.asynchronous = make_async(config)
        self.store = JobStore(self.asynchronous, config)
        self.workers = WorkerStore(self.redis, config)
        #: A store whose reaper pushes missing messages at once.
        self.eager = WorkerStore(self.redis, config.model_copy(update={"dispatch_timeout_s": 0.0}))
        self.redis.flushall()
        self.serving: dict[str, bool] = {}
        for worker in WORKERS:
            self.workers.register(worker, CARD)
            self.serving[worker.name] = worker.state is WorkerState.IDLE
        self.workers.reap()
        self.model: dict[str, Modelled] = {}
        #: The waiting jobs in serving order at the last check, and the jobs that were requeued since then.
        self.line: list[str] = []
        self.requeued: set[str] = set()
        self.versions: dict[str, int] = {}
        self.ended: dict[str, Job] = {}

    def teardown(self) -> None:
        self.run(self.asynchronous.aclose())
        self.redis.close()

    # Rules

    @rule(target=jobs, priority=st.integers(0, 9), limited=st.booleans())
    def submit(self, priority: int, limited: bool) -> str:
        generation = make_generation(prompt="1+1=", max_tokens=MAX_TOKENS, temperature=0.0, seed=7)
        new = NewJob(
            id=new_job_id(),
            owner="anybody",
            checkpoint="tiny",
            digest=CARD.digest,
            generation=generation,
            priority=priority,
            limits=TimeLimits(deadline_ms=NEVER_MS if limited else None),
        )
        self.run(self.store.submit(new))
        self.model[new.id] = Modelled(limited=limited, priority=priority)
        return new.id

    @rule(target=claims, job_id=jobs, worker=st.sampled_from(WORKERS))
    def claim(self, job_id: str, worker: WorkerInfo) -> Any:
        """Claim with or without a message on the list, as with duplicate and stray messages."""
        dispatched = self.redis.zscore(keys.dispatched("tiny"), job_id) is not None
        claimed = self.workers.claim(
            job_id, worker=worker.name, incarnation=worker.incarnation, digest=worker.digest, prompt_tokens=4
        )
        job = self.model[job_id]
        assert isinstance(claimed, Claimed) == (job.waits and dispatched and not job.overdue)
        if job.waits and dispatched and job.overdue:
            job.expire()
        if isinstance(claimed, Claimed):
            job.status, job.attempt, job.lease_expired = Status.RUNNING, job.attempt + 1, False
            if job.attempt > 1:
                job.marks.append((len(job.text), job.attempt))
            assert (claimed.attempt, "".join(claimed.pieces)) == (job.attempt, job.text)
            return Claim(job_id, job.attempt)
        return multiple()

    @rule(target=claims, worker=st.sampled_from(WORKERS))
    def take_next_message(self, worker: WorkerInfo) -> Any:
        """Claim the job of the next message, as a worker normally does."""
        message: Any = self.redis.rpop(keys.queue("tiny"))
        return multiple() if message is None else self.claim(json.loads(message)["headers"]["id"], worker)

    @rule(worker=st.sampled_from(WORKERS), serving=st.booleans())
    def heartbeat(self, worker: WorkerInfo, serving: bool) -> None:
        self.workers.heartbeat(replace(worker, state=WorkerState.IDLE if serving else WorkerState.DRAINING))
        self.serving[worker.name] = serving

    @precondition(lambda self: self.held())
    @rule(data=st.data(), text=st.text("0123456789", min_size=1, max_size=3), back=st.integers(0, 3))
    def append_by_the_holder(self, data: st.DataObject, text: str, back: int) -> None:
        self.append(data.draw(st.sampled_from(self.held())), text, back)

    @rule(claim=claims, text=st.text("0123456789", min_size=1, max_size=3), back=st.integers(0, 3))
    def append(self, claim: Claim, text: str, back: int) -> None:
        """Append new tokens, and send the last `back` tokens of the log again with them."""
        job = self.model[claim.job_id]
        back = min(back, len(job.text))
        before = len(job.text) - back
        reply = self.workers.flush(
            [append(claim.job_id, job.text[before:] + text, before=before, attempt=claim.attempt)]
        )[0]
        assert reply.fenced != self.holds(claim)
        if not reply.fenced:
            job.text += text
            job.losses_in_a_row = 0
            assert (reply.length, reply.cancel_requested) == (len(job.text), job.cancel_requested)

    @rule(claim=claims, missing=st.integers(1, 5))
    def append_with_a_gap(self, claim: Claim, missing: int) -> None:
        job = self.model[claim.job_id]
        before = len(job.text) + missing
        reply = self.workers.flush([append(claim.job_id, "9", before=before, attempt=claim.attempt)])[0]
        assert reply.fenced != self.holds(claim)
        assert reply.gap == self.holds(claim)

    @rule(claim=claims)
    def renew(self, claim: Claim) -> None:
        renewal = self.workers.renew({claim.job_id: claim.attempt})
        assert bool(renewal.lost) != self.holds(claim)
        if not renewal.lost:
            job = self.model[claim.job_id]
            job.lease_expired = False
            assert bool(renewal.cancelled) == job.cancel_requested

    @rule(claim=claims, count_loss=st.booleans())
    def release(self, claim: Claim, count_loss: bool) -> None:
        held = self.holds(claim)
        assert self.workers.release(claim.job_id, claim.attempt, count_loss=count_loss) == held
        if held:
            job = self.model[claim.job_id]
            job.lose() if count_loss else job.release()

    @rule(
        claim=claims,
        text=st.text("0123456789", max_size=2),
        status=st.sampled_from([Status.SUCCEEDED, Status.FAILED, Status.CANCELLED]),
    )
    def finish(self, claim: Claim, text: str, status: Status) -> None:
        job = self.model[claim.job_id]
        held = self.holds(claim)
        again = job.status is status and job.attempt == claim.attempt and not job.deleted
        completion = job.text + text
        reply = self.workers.flush(
            [
                finish(
                    claim.job_id,
                    text,
                    before=len(job.text),
                    attempt=claim.attempt,
                    status=status,
                    completion=completion,
                )
            ]
        )[0]
        assert reply.fenced != (held or again)
        if held:
            job.status, job.text = status, completion
            job.losses_in_a_row = 0 if text else job.losses_in_a_row

    @rule(job_id=jobs)
    def cancel(self, job_id: str) -> None:
        job = self.model[job_id]
        self.run(self.store.cancel(job_id))
        if job.waits:
            job.status = Status.CANCELLED
        elif job.runs:
            job.cancel_requested = True

    @rule(job_id=jobs)
    def delete(self, job_id: str) -> None:
        """Delete a job in any state, or a deleted job."""
        assert self.run(self.store.delete(job_id))
        assert self.run(self.store.get(job_id)) is None
        self.model[job_id].deleted = True

    @precondition(lambda self: any(job.limited and not job.overdue for job in self.model.values()))
    @rule(data=st.data())
    def pass_deadline(self, data: st.DataObject) -> None:
        """The deadline of a job passes, without a call that notices it."""
        limited = [job_id for job_id, job in self.model.items() if job.limited and not job.overdue]
        job_id = data.draw(st.sampled_from(limited))
        job = self.model[job_id]
        job.overdue = True
        if job.waits or job.runs:
            self.redis.hset(keys.job(job_id), "deadline_at", 1)
            self.redis.zadd(keys.TIMEOUTS, {job_id: 1}, xx=True)

    @rule(job_id=jobs)
    def requeue(self, job_id: str) -> None:
        self.workers.requeue(job_id)
        self.requeued.add(job_id)

    @precondition(lambda self: self.held())
    @rule(data=st.data(), renewed=st.booleans())
    def expire_lease(self, data: st.DataObject, renewed: bool) -> None:
        """A lease expires. With `renewed`, its worker renews it before the reaper runs."""
        claim = data.draw(st.sampled_from(self.held()))
        self.redis.zadd(keys.running("tiny"), {claim.job_id: 1}, xx=True)
        self.model[claim.job_id].lease_expired = True
        if renewed:
            self.renew(claim)

    @rule()
    def reap(self) -> None:
        self.reap_with(self.workers)

    def reap_with(self, workers: WorkerStore) -> None:
        late = [job for job in self.model.values() if job.waits and job.overdue]
        expired = [job for job in self.model.values() if job.runs and job.lease_expired]
        reaped = workers.reap()
        assert (reaped.jobs_overdue, reaped.leases_expired) == (len(late), len(expired))
        for job in late:
            job.expire()
        for job in expired:
            job.lose()

    @rule(keep=st.integers(0, 2))
    def lose_messages_and_reap(self, keep: int) -> None:
        """Celery's list loses messages. Then every dispatched job has a message again if a worker takes jobs."""
        self.redis.ltrim(keys.queue("tiny"), 0, keep - 1) if keep else self.redis.delete(keys.queue("tiny"))
        dispatched: Any = self.redis.zrange(keys.dispatched("tiny"), 0, -1)
        self.requeued |= {member.decode() for member in dispatched}
        self.reap_with(self.eager)
        if not any(self.serving.values()):
            return
        messages: Any = self.redis.lrange(keys.queue("tiny"), 0, -1)
        ids = {json.loads(message)["headers"]["id"].encode() for message in messages}
        assert set(self.redis.zrange(keys.dispatched("tiny"), 0, -1)) <= ids

    # Invariants

    @invariant()
    def records_and_listings_match_the_model(self) -> None:
        jobs = {job.id: job for job in self.run(self.store.list(limit=1000)).jobs}
        model = self.kept()
        assert jobs.keys() == model.keys()
        for job_id, expected in model.items():
            job = jobs[job_id]
            assert (job.status, job.attempt, job.tokens) == (expected.status, expected.attempt, len(expected.text))
            if not job.status.terminal:
                assert (job.losses, job.losses_in_a_row) == (expected.losses, expected.losses_in_a_row)
            else:
                assert self.ended.setdefault(job_id, job) == job
                assert job.completion == expected.text
            assert job.version >= self.versions.get(job_id, 0)
            self.versions[job_id] = job.version
            codes = (ErrorCode.WORKER_LOST, ErrorCode.DEADLINE_EXCEEDED)
            assert job.error is None or job.error == FAILED or job.error.code in codes
        positions = [job.position for job in jobs.values() if job.position is not None]
        assert sorted(positions) == list(range(sum(job.status is Status.QUEUED for job in jobs.values())))
        for status in Status:
            listed: Any = self.redis.zrange(keys.jobs_with(status), 0, -1)
            assert {member.decode() for member in listed} == {job.id for job in jobs.values() if job.status is status}

    @invariant()
    def a_position_grows_only_for_a_more_urgent_or_a_resumed_job(self) -> None:
        jobs = self.run(self.store.list(status=Status.QUEUED, limit=1000)).jobs
        line = [job.id for job in sorted(jobs, key=lambda job: -1 if job.position is None else job.position)]
        for index, job_id in enumerate(line):
            if job_id not in self.line:
                continue
            before = self.line[: self.line.index(job_id)]
            for other in set(line[:index]) - set(before):
                resumed = self.model[other].attempt > 0 or other in self.requeued
                assert resumed or self.model[other].priority < self.model[job_id].priority
        self.line, self.requeued = line, set()

    @invariant()
    def a_live_job_is_in_one_place(self) -> None:
        members: dict[str, set[str]] = {}
        for zset in (keys.backlog, keys.dispatched, keys.running):
            found: Any = self.redis.zrange(zset("tiny"), 0, -1)
            members[zset.__name__] = {member.decode() for member in found}
        for job_id, job in self.kept().items():
            places = [name for name, ids in members.items() if job_id in ids]
            if job.status is Status.RUNNING:
                assert places == ["running"]
            elif job.status is Status.QUEUED:
                assert places in (["backlog"], ["dispatched"])
            else:
                assert places == []
        assert set().union(*members.values()) <= self.kept().keys()
        held: Any = self.redis.sunion(*(keys.worker_jobs(worker.name) for worker in WORKERS))
        assert {member.decode() for member in held} == members["running"]
        room = sum(1 + LIMITS["SPARE_MESSAGES"] for serving in self.serving.values() if serving)
        used = len(members["dispatched"]) + len(members["running"])
        assert used >= room or not members["backlog"]

    @invariant()
    def logs_hold_each_token_once(self) -> None:
        with self.redis.pipeline(transaction=False) as pipeline:
            for job_id in self.kept():
                pipeline.xrange(keys.tokens(job_id))
            logs = pipeline.execute()
        for expected, log in zip(self.kept().values(), logs, strict=True):
            text, marks = "", []
            for entry in map(Entry.decode, log):
                assert entry.before == len(text)
                text += entry.text
                if entry.attempt is not None:
                    marks.append((entry.after, entry.attempt))
            assert (text, marks) == (expected.text, expected.marks)

    @invariant()
    def waiting_tokens_and_time_limits_match_the_model(self) -> None:
        waiting = {job_id: job for job_id, job in self.model.items() if job.waits}
        tokens = sum(max(0, MAX_TOKENS - len(job.text)) for job in waiting.values())
        assert int(self.redis.get(keys.waiting_tokens("tiny")) or 0) == tokens
        limited: Any = self.redis.zrange(keys.TIMEOUTS, 0, -1)
        assert {member.decode() for member in limited} == {job_id for job_id, job in waiting.items() if job.limited}

    def kept(self) -> dict[str, Modelled]:
        """The jobs that were not deleted."""
        return {job_id: job for job_id, job in self.model.items() if not job.deleted}

    def holds(self, claim: Claim) -> bool:
        """Whether the claim is the job's current one."""
        return claim in self.held()

    def held(self) -> list[Claim]:
        """The current claims of the running jobs."""
        return [Claim(job_id, job.attempt) for job_id, job in self.model.items() if job.runs]


@pytest.fixture
def machine(redis_url: str) -> Iterator[type[QueueMachine]]:
    """The machine, bound to a Redis and to an event loop."""
    with asyncio.Runner() as runner:
        yield type("BoundMachine", (QueueMachine,), {"url": redis_url, "run": staticmethod(runner.run)})


@pytest.mark.parametrize("examples", [40, pytest.param(400, marks=pytest.mark.slow)])
def test_the_queue_matches_the_model_in_random_sequences(machine: type[QueueMachine], examples: int) -> None:
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow],
            database=None,
        ),
    )
