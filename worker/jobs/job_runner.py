"""The task body: from a job id to a finished job, one pool thread for each."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from typing import TypeVar

import structlog
from redis.exceptions import RedisError

from tasks.card import Card
from tasks.job import ErrorCode, Job, JobError, Status
from tasks.store.worker_store import Claimed, Refused, WorkerStore
from worker.checkpoints.tokenizers import Tokenizer
from worker.engine.request import SequenceRequest
from worker.engine_process.client import EngineDiedError
from worker.engine_process.supervisor import EngineSupervisor
from worker.jobs.detokenizer import Detokenizer
from worker.jobs.kv_admission import GateClosedError, KvGate, Ticket, WithdrawnError
from worker.jobs.prompt import PromptError, answer_tokens, encode_prompt
from worker.jobs.publisher import Publisher, PublisherStoppedError
from worker.jobs.running_job import RunningJob

log = structlog.get_logger(__name__)

T = TypeVar("T")

#: Wait between two tries while Redis is away, in seconds.
RETRY_S = 0.5


class LeftError(Exception):
    """The worker stops while Redis is away: a job stays as Redis last knew it."""


class JobRunner:
    """Runs jobs on one engine. `run` is called by many threads at once."""

    def __init__(
        self,
        *,
        store: WorkerStore,
        engine: EngineSupervisor,
        publisher: Publisher,
        gate: KvGate,
        tokenizer: Tokenizer,
        card: Card,
        worker: str,
        incarnation: str,
    ) -> None:
        self._store = store
        self._engine = engine
        self._publisher = publisher
        self._gate = gate
        self._tokenizer = tokenizer
        self._card = card
        self._worker = worker
        self._incarnation = incarnation
        self._inside = 0
        self._idle = threading.Condition()
        self._closed = threading.Event()

    def run(self, job_id: str) -> None:
        """Run one job to its end, or until it is handed back. A job that is over or runs elsewhere: nothing happens."""
        with self._body():
            try:
                self._run(job_id)
            except LeftError as error:
                log.warning("job_left_in_queue", job_id=job_id, why=str(error))

    @contextmanager
    def _body(self) -> Iterator[None]:
        with self._idle:
            self._inside += 1
        try:
            yield
        finally:
            with self._idle:
                self._inside -= 1
                self._idle.notify_all()

    def close(self) -> None:
        """From now on a job that is not claimed yet goes back to the queue."""
        self._closed.set()
        self._gate.close()

    def withdraw_over(self) -> None:
        """Call jobs out of the line in front of the engine that need not run any more. Raises RedisError."""
        if tickets := self._gate.waiting:
            over = self._store.no_longer_queued([ticket.name for ticket in tickets])
            self._gate.withdraw(ticket for ticket in tickets if ticket.name in over)

    def wait_idle(self, timeout_s: float) -> bool:
        """Wait until every body has returned. False where some have not in time."""
        with self._idle:
            return self._idle.wait_for(lambda: self._inside == 0, timeout_s)

    def _run(self, job_id: str) -> None:
        try:
            self._take_up(job_id)
        except PromptError as error:
            self._reject(job_id, JobError(error.code, str(error), retryable=False))
        except LeftError:
            raise
        except Exception as error:
            log.exception("job_broke", job_id=job_id)
            message = f"The worker could not prepare this job ({type(error).__name__})."
            self._reject(job_id, JobError(ErrorCode.INTERNAL, message, retryable=True))

    def _take_up(self, job_id: str) -> None:
        """From the message to the claim."""
        job = self._patiently(partial(self._store.read, job_id))
        if job is None or job.status is not Status.QUEUED:
            log.info("job_skipped", job_id=job_id, why="gone" if job is None else job.status.value)
            return
        prompt, warnings = encode_prompt(self._tokenizer, job.generation.prompt)
        request = self._request(job, prompt)
        with ExitStack() as held:
            try:
                ticket = held.enter_context(
                    self._gate.reserve(len(prompt), request.sampling.max_tokens, name=job_id, alone=request.alone > 0)
                )
                if not self._engine.wait_available():
                    raise GateClosedError
            except GateClosedError:
                self._patiently(partial(self._store.requeue, job_id))
                return
            except WithdrawnError:
                log.info("job_skipped", job_id=job_id, why="over before its turn")
                return
            claim = self._claim(job_id, len(prompt), warnings)
            if isinstance(claim, Refused):
                log.info("claim_refused", job_id=job_id, why=claim.reason)
            elif claim.attempt != job.attempt + 1:
                # Others had it while it waited here, and may have died of it: what was read of its losses is old.
                log.info("job_left", job_id=job_id, why="changed while it waited")
                self._patiently(partial(self._store.release, job_id, claim.attempt))
            else:
                self._decode(job, claim, request, ticket)

    def _reject(self, job_id: str, error: JobError) -> None:
        log.info("job_rejected", job_id=job_id, code=error.code.value)
        self._patiently(partial(self._store.reject, job_id, error, digest=self._card.digest))

    def _claim(self, job_id: str, prompt_tokens: int, warnings: tuple[str, ...]) -> Claimed | Refused:
        return self._patiently(
            partial(
                self._store.claim,
                job_id,
                worker=self._worker,
                incarnation=self._incarnation,
                digest=self._card.digest,
                prompt_tokens=prompt_tokens,
                warnings=warnings,
                # One name for all tries: a try whose reply was lost may have claimed the job.
                claim=secrets.token_hex(8),
            )
        )

    def _decode(self, job: Job, claim: Claimed, request: SequenceRequest, ticket: Ticket) -> None:
        """From the claim to the end."""
        try:
            running = self._adopt(job, claim, request.alone, ticket)
            log.info("job_started", job_id=job.id, attempt=claim.attempt, resumed_tokens=len(claim.token_ids))
            attempt = replace(
                request, id=running.sequence_id, generated=claim.token_ids, time_limit_s=claim.time_left_s
            )
            self._submit(running, attempt)
            running.over.wait()
        except PublisherStoppedError:
            self._patiently(partial(self._store.release, job.id, claim.attempt))
        except Exception:
            # Our own fault, and perhaps with this job alone: after some such losses it fails.
            log.exception("job_broke", job_id=job.id)
            self._patiently(partial(self._store.release, job.id, claim.attempt, count_loss=True))

    def _submit(self, running: RunningJob, request: SequenceRequest) -> None:
        try:
            self._engine.submit(request)
        except EngineDiedError:
            # The engine's death handed back the jobs that it held; this one came too late for that.
            self._publisher.hand_back(running.sequence_id)
        if running.over.is_set():
            # Handed back in the meantime, before the engine knew the sequence.
            self._engine.abort(running.sequence_id)

    def _request(self, job: Job, prompt: tuple[int, ...]) -> SequenceRequest:
        """What a first attempt asks of the engine. Raises PromptError."""
        max_tokens = answer_tokens(prompt, job.generation.sampling.max_tokens, context=self._card.context)
        return SequenceRequest(
            id=job.id,
            prompt=prompt,
            sampling=replace(job.generation.sampling, max_tokens=max_tokens),
            alone=alone_tokens(job, max_tokens),
        )

    def _patiently(self, call: Callable[[], T]) -> T:
        """`call`, again and again while Redis is away: a body that gave up would ack the message of a waiting job.

        Raises LeftError where the worker stops: then one try must do.
        """
        while True:
            try:
                return call()
            except RedisError as error:
                if self._closed.wait(RETRY_S):
                    raise LeftError(str(error)) from error
                log.warning("redis_away", error=str(error))

    def _adopt(self, job: Job, claim: Claimed, alone: int, ticket: Ticket) -> RunningJob:
        sampling = job.generation.sampling
        assembler = Detokenizer(self._tokenizer.decoder(), stop=sampling.stop, stop_on_newline=sampling.stop_on_newline)
        assembler.push_all(claim.token_ids)
        running = RunningJob(
            job_id=job.id,
            attempt=claim.attempt,
            assembler=assembler,
            token_ids=list(claim.token_ids),
            pieces=list(claim.pieces),
            logged=len(claim.token_ids),
            cleared_at=len(claim.token_ids) + alone if alone else None,
            on_cleared=ticket.clear,
        )
        self._publisher.adopt(running)
        return running


def alone_tokens(job: Job, max_tokens: int) -> int:
    """How many new tokens a job decodes alone: none, unless it lost a worker or an engine since its last one."""
    if job.losses_in_a_row == 0:
        return 0
    # One token clears most: they were mates of the guilty one. A job that kills its engine some tokens after each time
    # it is taken up looks as innocent, and would take its mates along ten times. So with every loss it is watched for
    # twice as long, and is soon alone when it happens.
    return min(1 << (job.losses - 1), max_tokens)
