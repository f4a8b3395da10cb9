"""The task body: takes a job from its message to its end, in one pool thread for each job."""

from __future__ import annotations

import secrets
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from typing import TypeVar

import structlog

from tasks.card import Card
from tasks.job import ErrorCode, Job, JobError, Status
from tasks.store.worker_store import Claimed, Refused, WorkerStore
from worker.checkpoints.tokenizers import Tokenizer, tool_content_of
from worker.engine_process.client import EngineCrashedError
from worker.engine_process.messages import SequenceRequest
from worker.engine_process.supervisor import EngineSupervisor
from worker.jobs.detokenizer import Detokenizer
from worker.jobs.kv_admission import AdmissionClosedError, KvAdmission, Reservation, ReservationRemovedError
from worker.jobs.prompt import PromptError, answer_tokens, prompt_of, uses_tools
from worker.jobs.publisher import Publisher, PublisherStoppedError
from worker.jobs.retry import RetryStoppedError, retry_while_redis_is_away
from worker.jobs.running_job import RunningJob

log = structlog.get_logger(__name__)

T = TypeVar("T")

#: Wait between two calls while Redis is away, in seconds.
RETRY_S = 0.5


class JobRunner:
    """Runs jobs on one engine. `run` is called by many threads at once."""

    def __init__(
        self,
        *,
        store: WorkerStore,
        engine: EngineSupervisor,
        publisher: Publisher,
        admission: KvAdmission,
        tokenizer: Tokenizer,
        card: Card,
        worker: str,
        incarnation: str,
    ) -> None:
        self._store = store
        self._engine = engine
        self._publisher = publisher
        self._admission = admission
        self._tokenizer = tokenizer
        self._card = card
        self._worker = worker
        self._incarnation = incarnation
        #: The job of each thread in `run`.
        self._inside: Counter[str] = Counter()
        self._idle = threading.Condition()
        self._closed = threading.Event()

    def run(self, job_id: str) -> None:
        """Run a job until it is over or released. Does nothing for a job that is over, or that another worker runs."""
        with self._counted(job_id):
            try:
                self._run_or_reject(job_id)
            except RetryStoppedError as error:
                # The job stays as it is in Redis: its message is pushed again, or its lease runs out.
                log.warning("stopped_while_redis_away", job_id=job_id, error=str(error))

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed.is_set()

    def close(self) -> None:
        """Claim no more jobs: from now on a job that is not claimed is requeued."""
        self._closed.set()
        self._admission.close()

    def finish_running(self) -> None:
        """Claim no more jobs, as after `close`, and return when the claimed ones have ended. `close` may follow."""
        self._admission.close()
        with self._idle:
            self._idle.wait_for(lambda: not self._inside)

    def remove_ended(self) -> None:
        """Remove jobs that wait for KV memory and have ended, for example because they were cancelled.

        Raises RedisError.
        """
        if waiting := self._admission.waiting:
            ended = self._store.no_longer_queued([reservation.job_id for reservation in waiting])
            self._admission.remove(reservation for reservation in waiting if reservation.job_id in ended)

    def wait_idle(self, timeout_s: float) -> bool:
        """Wait until all calls of `run` have returned. Returns False if some have not in time."""
        with self._idle:
            return self._idle.wait_for(lambda: not self._inside, timeout_s)

    def job_ids(self) -> set[str]:
        """The jobs for which a thread is in `run` now."""
        with self._idle:
            return set(self._inside)

    @contextmanager
    def _counted(self, job_id: str) -> Iterator[None]:
        with self._idle:
            self._inside[job_id] += 1
        try:
            yield
        finally:
            with self._idle:
                self._inside -= Counter((job_id,))
                self._idle.notify_all()

    def _run_or_reject(self, job_id: str) -> None:
        """Run a job. A job that cannot be prepared fails; otherwise it would wait forever.

        No error leaves the task body, not even one that is no Exception, such as a panic in an extension module: Celery
        would not acknowledge the message, and the slot would be lost.
        """
        try:
            self._run(job_id)
        except PromptError as error:
            self._reject(job_id, JobError(error.code, str(error), retryable=error.code is ErrorCode.UNSUPPORTED))
        except RetryStoppedError:
            raise
        except MemoryError:
            log.exception("job_error", job_id=job_id)
            message = "The worker has no memory left to prepare this job."
            self._reject(job_id, JobError(ErrorCode.OUT_OF_MEMORY, message, retryable=True))
        except BaseException as error:
            log.exception("job_error", job_id=job_id)
            message = f"The worker could not prepare this job ({type(error).__name__})."
            self._reject(job_id, JobError(ErrorCode.INTERNAL, message, retryable=True))

    def _run(self, job_id: str) -> None:
        job = self._read(job_id)
        if job is None:
            return
        request, warnings = self._encode(job)
        with ExitStack() as held:
            reservation = self._reserve(held, request)
            if reservation is None:
                return
            claim = self._claim(job, request, warnings)
            if claim is None:
                return
            self._decode(job, request, claim, reservation)

    def _read(self, job_id: str) -> Job | None:
        """The job; None if it no longer waits."""
        job = self._retry(partial(self._store.read, job_id))
        if job is None or job.status is not Status.QUEUED:
            log.info("job_skipped", job_id=job_id, why="gone" if job is None else job.status.value)
            return None
        return job

    def _encode(self, job: Job) -> tuple[SequenceRequest, tuple[str, ...]]:
        """The request of a first attempt, and warnings about the prompt. Raises PromptError."""
        if unsupported := job.generation.unsupported():
            raise PromptError(
                ErrorCode.UNSUPPORTED,
                f"This worker does not support the request's {', '.join(unsupported)[:200]}. Its version is older than "
                "that of the API: update the workers, and send the request again.",
            )
        prompt, warnings = prompt_of(job.generation, self._tokenizer, self._card, now=job.created_at / 1000)
        max_tokens = answer_tokens(prompt, job.generation.sampling.max_tokens, context=self._card.context)
        request = SequenceRequest(
            id=job.id,
            prompt=prompt,
            sampling=replace(job.generation.sampling, max_tokens=max_tokens),
            choice=job.generation.choice,
            cache_salt=job.owner,
            tools=uses_tools(job.generation, self._card),
            alone=tokens_alone(job, max_tokens),
        )
        return request, warnings

    def _reserve(self, held: ExitStack, request: SequenceRequest) -> Reservation | None:
        """KV memory for the job, until `held` is closed. None if the job does not run here."""
        try:
            reservation = held.enter_context(
                self._admission.reserve(
                    len(request.prompt), request.sampling.max_tokens, job_id=request.id, suspect=request.alone > 0
                )
            )
            if not self._engine.available:
                # Another worker may have an engine. This one takes the job again when it has a new engine.
                raise AdmissionClosedError
        except AdmissionClosedError:
            self._retry(partial(self._store.requeue, request.id))
            return None
        except ReservationRemovedError:
            log.info("job_skipped", job_id=request.id, why="ended while it waited")
            return None
        return reservation

    def _claim(self, job: Job, request: SequenceRequest, warnings: tuple[str, ...]) -> Claimed | None:
        """The claim; None if the job does not run here."""
        claim = self._retry(
            partial(
                self._store.claim,
                job.id,
                worker=self._worker,
                incarnation=self._incarnation,
                digest=self._card.digest,
                prompt_tokens=len(request.prompt),
                warnings=warnings,
                # All calls use one name: a call whose reply was lost may have claimed the job.
                claim=secrets.token_hex(8),
            )
        )
        if isinstance(claim, Refused):
            log.info("claim_refused", job_id=job.id, why=claim.reason)
            return None
        if claim.attempt != job.attempt + 1:
            # Another worker ran the job while it waited here, and may have crashed: `job.losses` is out of date.
            log.info("job_released", job_id=job.id, why="another worker ran it while it waited")
            self._retry(partial(self._store.release, job.id, claim.attempt))
            return None
        return claim

    def _decode(self, job: Job, request: SequenceRequest, claim: Claimed, reservation: Reservation) -> None:
        """Decode a claimed job, and return when it is over or released."""
        try:
            running = self._running_job(job, request, claim, reservation)
            self._publisher.add(running)
            log.info("job_started", job_id=job.id, attempt=claim.attempt, resumed_tokens=len(claim.token_ids))
            if claim.has_prompt_logprobs:
                request = replace(request, sampling=replace(request.sampling, prompt_logprobs=None))
            self._add_request(
                running,
                replace(request, id=running.sequence_id, generated=claim.token_ids, time_limit_s=claim.time_left_s),
            )
            running.over.wait()
        except PublisherStoppedError:
            self._retry(partial(self._store.release, job.id, claim.attempt))
        except BaseException:
            # A bug of the worker, perhaps with this job alone. It counts as a loss; after some losses the job fails.
            log.exception("job_error", job_id=job.id)
            self._retry(partial(self._store.release, job.id, claim.attempt, count_loss=True))

    def _running_job(self, job: Job, request: SequenceRequest, claim: Claimed, reservation: Reservation) -> RunningJob:
        sampling = job.generation.sampling
        detokenizer = Detokenizer(
            self._tokenizer.decoder(request.prompt),
            stop=sampling.stop,
            stop_on_newline=sampling.stop_on_newline,
            min_tokens=sampling.min_tokens or 0,
            tools=tool_content_of(self._tokenizer) if request.tools else None,
        )
        detokenizer.push_all(claim.token_ids)
        logged = len(claim.token_ids)
        return RunningJob(
            job_id=job.id,
            attempt=claim.attempt,
            detokenizer=detokenizer,
            token_ids=list(claim.token_ids),
            pieces=list(claim.pieces),
            logprobs=list(claim.logprobs),
            logged=logged,
            cleared_at=logged + request.alone if request.alone else None,
            on_cleared=reservation.clear,
        )

    def _add_request(self, running: RunningJob, request: SequenceRequest) -> None:
        try:
            self._engine.add_request(request)
        except EngineCrashedError:
            # The publisher released the jobs that it had at the crash. This job may have been added after it.
            self._publisher.release(running.sequence_id)
        if running.over.is_set():
            # It was released before the engine got the sequence, so the publisher's abort had no effect.
            self._engine.abort(running.sequence_id)

    def _reject(self, job_id: str, error: JobError) -> None:
        log.info("job_rejected", job_id=job_id, code=error.code.value)
        self._retry(partial(self._store.reject, job_id, error, digest=self._card.digest))

    def _retry(self, call: Callable[[], T]) -> T:
        """Repeat `call` while Redis is away. Raises RetryStoppedError after one failed call if the worker stops.

        A task body that returned instead would make Celery acknowledge the message of a job that still waits.
        """
        return retry_while_redis_is_away(call, wait_s=RETRY_S, wait_for_stop=self._closed.wait)


def tokens_alone(job: Job, max_tokens: int) -> int:
    """How many new tokens a job decodes alone: 0 unless it lost a worker or an engine since its last new token."""
    if job.losses_in_a_row == 0:
        return 0
    # One token clears most suspects: they only ran together with the job that caused the crash. But that job may crash
    # its engine some tokens after each start. One token would clear it each time, and ten crashes would each count a
    # loss for the jobs beside it. So the number doubles with each loss, until the job is alone when the engine crashes.
    return min(1 << (job.losses - 1), max_tokens)
