"""A worker without a model. It takes jobs as a Celery worker does, and writes through the real WorkerStore."""

from __future__ import annotations

import json
import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import redis

from tasks.card import Card, TokenizerCard
from tasks.generation import FinishReason
from tasks.job import Job, JobError, Status
from tasks.redis_client.connections import make_sync
from tasks.settings import Settings
from tasks.store import keys
from tasks.store.job_writes import AppendTokens, FinishJob
from tasks.store.worker_store import Claimed, WorkerStore
from tasks.worker_info import WorkerInfo, WorkerState

CHARACTERS = "\n 0123456789+-*/=HBabcdefghij"

CARD = Card(
    name="step_002920",
    digest="d" * 64,
    step=2920,
    loss=0.2627,
    loss_name="val_loss",
    era="E1b",
    n_layer=4,
    n_head=4,
    n_kv_head=4,
    n_embd=128,
    vocab_size=32,
    context=64,
    softcap=15.0,
    parameters=1000,
    weight_bytes=4000,
    kv_bytes_per_token=4096,
    tokenizer=TokenizerCard(
        kind="characters", text_ids=len(CHARACTERS), characters=CHARACTERS, bos_id=31, prepend_bos=True
    ),
)

#: A card with a BPE tokenizer, so that only the worker can check prompts.
BPE_CARD = replace(
    CARD,
    name="bpe",
    digest="b" * 64,
    vocab_size=50304,
    context=1024,
    tokenizer=TokenizerCard(kind="tiktoken", text_ids=50000, bos_id=50256, prepend_bos=True),
)


def answer(job: Job) -> str:
    """The text of the fake model: the sum if the prompt is one, else `ab`."""
    left, plus, right = job.generation.prompt.rstrip("=").partition("+")
    if plus and left.isdigit() and right.isdigit():
        return str(int(left) + int(right))
    return "ab"


class FakeWorker:
    """Runs one job after the other. One token is one character."""

    def __init__(self, settings: Settings, card: Card = CARD, *, say: Callable[[Job], str] = answer) -> None:
        self.store = WorkerStore(make_sync(settings), settings)
        self.card = card
        self.info = WorkerInfo(
            name=f"{card.name}@test",
            incarnation="1",
            checkpoint=card.name,
            device="cpu",
            slots=2,
            pid=1,
            host="test",
            digest=card.digest,
            state=WorkerState.IDLE,
            kv_tokens=1024,
            kv_tokens_free=1024,
        )
        self._redis: redis.Redis = make_sync(settings)
        self._say = say
        self._stop = threading.Event()
        #: While it is cleared, jobs pause before their last token, unless they are cancelled.
        self.go = threading.Event()
        self.go.set()
        #: The error with which every job fails; None: jobs succeed.
        self.error: JobError | None = None
        #: The error with which every job is rejected before it is claimed; None: jobs are claimed.
        self.rejection: JobError | None = None
        #: Warnings of every job.
        self.warnings: list[str] = []
        #: Ids of the claimed jobs, in order.
        self.claimed: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="fake-worker")

    def start(self) -> None:
        """Register and start to take jobs."""
        self.store.register(self.info, self.card)
        self._thread.start()

    def stop(self) -> None:
        """Stop at once and deregister."""
        self._stop.set()
        self._thread.join()
        self.store.deregister(self.info)
        self._redis.close()

    def _run(self) -> None:
        while not self._stop.is_set():
            popped = self._redis.brpop([keys.queue(self.card.name)], timeout=0.05)
            if popped is not None:
                self._work(json.loads(popped[1])["headers"]["id"])

    def _work(self, job_id: str) -> None:
        job = self.store.read(job_id)
        if job is None or job.status.terminal:
            return
        if self.rejection is not None:
            self.store.reject(job_id, self.rejection, digest=self.card.digest)
            return
        claim = self.store.claim(
            job_id,
            worker=self.info.name,
            incarnation=self.info.incarnation,
            digest=self.card.digest,
            prompt_tokens=len(job.generation.prompt) + 1,
            warnings=self.warnings,
        )
        if isinstance(claim, Claimed):
            self.claimed.put(job_id)
            self._decode(job, claim)

    def _decode(self, job: Job, claim: Claimed) -> None:
        text = self._say(job)[: job.generation.sampling.max_tokens]
        for index, char in enumerate(text[:-1]):
            self._append(job, claim, index, char)
        cancelled = self._wait_to_go(job, claim, len(text) - 1)
        known = len(text) - 1
        last = "" if cancelled or self.error else text[-1:]
        status, reason = Status.SUCCEEDED, FinishReason.STOP
        if cancelled:
            status, reason = Status.CANCELLED, FinishReason.CANCELLED
        elif self.error is not None:
            status, reason = Status.FAILED, FinishReason.ERROR
        self.store.flush(
            [
                FinishJob(
                    tokens=AppendTokens(
                        job_id=job.id,
                        attempt=claim.attempt,
                        before=known,
                        token_ids=tuple(map(ord, last)),
                        pieces=tuple(last),
                    ),
                    tail="",
                    status=status,
                    finish_reason=reason,
                    completion=text[:known] + last,
                    error=self.error,
                )
            ]
        )

    def _wait_to_go(self, job: Job, claim: Claimed, known: int) -> bool:
        """Wait until the job may finish. True: it was cancelled before that, or the worker stops."""
        while not self.go.wait(0.02):
            reply = self._append(job, claim, known, "")
            if reply or self._stop.is_set():
                return True
        return False

    def _append(self, job: Job, claim: Claimed, before: int, text: str) -> bool:
        item = AppendTokens(
            job_id=job.id,
            attempt=claim.attempt,
            before=before,
            token_ids=tuple(map(ord, text)),
            pieces=tuple(text),
        )
        [reply] = self.store.flush([item])
        return reply.cancel_requested or reply.fenced


@contextmanager
def fake_worker(settings: Settings, card: Card = CARD, *, say: Callable[[Job], str] = answer) -> Iterator[FakeWorker]:
    """A registered worker that takes jobs."""
    worker = FakeWorker(settings, card, say=say)
    worker.start()
    try:
        yield worker
    finally:
        worker.stop()
