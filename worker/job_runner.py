"""The task body: from a job id to a finished job, one pool thread for each."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import ExitStack
from typing import TypeVar

import structlog
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from tasks.card import Card
from tasks.job import ErrorCode, Job, JobError
from tasks.worker_store import Claimed, WorkerStore
from worker.checkpoints.tokenizers import Tokenizer, UnknownCharacterError
from worker.engine.request import SequenceRequest
from worker.engine_client import EngineDiedError
from worker.kv_gate import GateClosedError, KvGate
from worker.publisher import Publisher
from worker.running import RunningJob
from worker.supervisor import EngineSupervisor
from worker.text import TextAssembler

log = structlog.get_logger(__name__)

T = TypeVar("T")

#: Wait between two tries while Redis is away, in seconds.
RETRY_S = 0.5


class RejectedError(Exception):
    """A job that this checkpoint can never run. Carries what the job shall tell."""

    def __init__(self, code: ErrorCode, message: str) -> None:
        super().__init__(message)
        self.error = JobError(code, message, retryable=False)


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
        self._inside_lock = threading.Lock()
        self._closed = threading.Event()

    def run(self, job_id: str) -> None:
        """Run one job to its end, or until it is handed back. A job that is over or runs elsewhere: nothing happens."""
        with self._inside_lock:
            self._inside += 1
        try:
            self._run(job_id)
        finally:
            with self._inside_lock:
                self._inside -= 1

    @property
    def inside(self) -> int:
        """Bodies that have not returned."""
        return self._inside

    def close(self) -> None:
        """From now on a job that is not claimed yet goes back to the queue."""
        self._closed.set()
        self._gate.close()

    def _run(self, job_id: str) -> None:
        job = self._patiently(lambda: self._store.read(job_id))
        if job is None or job.status.terminal:
            log.info("job_skipped", job_id=job_id, why="gone" if job is None else job.status.value)
            return
        try:
            prompt, warnings = self._encode(job)
        except RejectedError as rejected:
            log.info("job_rejected", job_id=job_id, code=rejected.error.code.value)
            error = rejected.error
            self._patiently(lambda: self._store.reject(job_id, error, digest=self._card.digest))
            return
        max_tokens = min(job.generation.max_tokens, self._card.context - len(prompt))
        with ExitStack() as held:
            try:
                held.enter_context(self._gate.reserve(len(prompt), max_tokens))
            except GateClosedError:
                self._patiently(lambda: self._store.put_back(job_id))
                return
            if not self._engine.wait_available():
                self._patiently(lambda: self._store.put_back(job_id))
                return
            self._claim_and_decode(job, prompt, max_tokens, warnings)

    def _claim_and_decode(self, job: Job, prompt: tuple[int, ...], max_tokens: int, warnings: tuple[str, ...]) -> None:
        claim = self._patiently(
            lambda: self._store.claim(
                job.id,
                worker=self._worker,
                incarnation=self._incarnation,
                digest=self._card.digest,
                prompt_tokens=len(prompt),
                warnings=warnings,
            )
        )
        if not isinstance(claim, Claimed):
            log.info("claim_refused", job_id=job.id, why=claim.reason)
            return
        running = self._adopt(job, claim)
        request = SequenceRequest(
            id=job.id,
            prompt=prompt,
            generated=claim.token_ids,
            max_tokens=max_tokens,
            temperature=job.generation.temperature,
            top_k=job.generation.top_k,
            top_p=job.generation.top_p,
            seed=job.generation.seed,
            stop_on_newline=job.generation.stop_on_newline,
            stop=tuple(stop.encode() for stop in job.generation.stop),
            ignore_eos=job.generation.ignore_eos,
        )
        log.info("job_started", job_id=job.id, attempt=claim.attempt, resumed_tokens=len(claim.token_ids))
        try:
            self._engine.submit(request)
        except EngineDiedError:
            # The engine's death handed back the jobs that it held; this one came too late for that.
            self._publisher.hand_over(job.id, count_loss=False)
        if running.over.is_set():
            # Handed back in the meantime, before the engine knew the sequence.
            self._engine.abort(job.id)
        running.over.wait()

    def _patiently(self, call: Callable[[], T]) -> T:
        """`call`, again and again while Redis is away: a body that gave up would ack the message of a waiting job."""
        while True:
            try:
                return call()
            except (RedisConnectionError, RedisTimeoutError) as error:
                if self._closed.wait(RETRY_S):
                    raise
                log.warning("redis_away", error=str(error))

    def _adopt(self, job: Job, claim: Claimed) -> RunningJob:
        assembler = TextAssembler(
            self._tokenizer.decoder(), stop=job.generation.stop, stop_on_newline=job.generation.stop_on_newline
        )
        for token_id in claim.token_ids:
            assembler.push(token_id)
        running = RunningJob(
            job_id=job.id,
            attempt=claim.attempt,
            assembler=assembler,
            token_ids=list(claim.token_ids),
            pieces=list(claim.pieces),
            logged=len(claim.token_ids),
        )
        self._publisher.adopt(running)
        return running

    def _encode(self, job: Job) -> tuple[tuple[int, ...], tuple[str, ...]]:
        """Prompt ids, BOS included where the card asks for it, and warnings. Raises RejectedError."""
        try:
            encoding = self._tokenizer.encode(job.generation.prompt)
        except UnknownCharacterError as error:
            raise RejectedError(ErrorCode.INVALID_REQUEST, str(error)) from error
        bos = (self._tokenizer.bos_id,) if self._tokenizer.prepend_bos and self._tokenizer.bos_id is not None else ()
        prompt = bos + encoding.ids
        if not prompt:
            raise RejectedError(ErrorCode.INVALID_REQUEST, "The prompt has no token that this checkpoint knows.")
        if len(prompt) >= self._card.context:
            raise RejectedError(
                ErrorCode.PROMPT_TOO_LONG,
                f"The prompt has {len(prompt)} tokens; the checkpoint's context of {self._card.context} leaves no room "
                f"for an answer. Shorten it to at most {self._card.context - 1} tokens.",
            )
        return prompt, encoding.warnings
