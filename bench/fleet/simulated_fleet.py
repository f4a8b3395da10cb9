"""Workers and jobs without processes: what a fleet writes into Redis, written by this process."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import cycle

import redis

from tasks.card import Card, TokenizerCard
from tasks.generation import FinishReason, Generation
from tasks.job import Status
from tasks.job_id import new_job_id
from tasks.sampling_params import SamplingParams
from tasks.settings import Settings
from tasks.store import keys, scripts
from tasks.store.job_writes import AppendTokens, FinishJob
from tasks.store.new_job import RESERVE_PER_JOB, RESERVE_PER_TOKEN
from tasks.store.switching_store import Offer, SwitchingStore
from tasks.store.worker_store import Claimed, WorkerStore
from tasks.switching_info import SwitchingInfo
from tasks.worker_info import WorkerInfo, WorkerState

CHECKPOINT = "simulated"
#: Slots of each worker: the default.
SLOTS = 32
#: Tokens of one append.
TOKENS = 16
#: Most tokens of each job.
MAX_TOKENS = 64
#: Longer than a benchmark, in seconds: simulated workers send no heartbeats, and renew no leases, while others are
#: measured.
FOREVER_S = 86_400.0
#: Characters of a Celery message without its job id. A rendered message has as many.
MESSAGE_CHARACTERS = 780
#: Calls in one round trip while the queue is filled.
CALLS_AT_ONCE = 500

CARD = Card(
    name=CHECKPOINT,
    digest="simulated",
    step=0,
    loss=0.5,
    loss_name="val_loss",
    era="E1b",
    n_layer=4,
    n_head=4,
    n_kv_head=4,
    n_embd=256,
    vocab_size=32,
    context=1024,
    softcap=15.0,
    parameters=1000,
    weight_bytes=4000,
    kv_bytes_per_token=64,
    tokenizer=TokenizerCard(kind="characters", text_ids=17, characters="0123456789+-*/=. "),
)


#: A worker that offers a thousand other checkpoints, and has loaded none of them.
SWITCHING = SwitchingInfo(
    name="switching@host",
    incarnation="first",
    device="cpu",
    pid=1,
    host="host",
    slots=SLOTS,
    budget_bytes=CARD.weight_bytes,
)
OFFERS = {
    name: Offer(replace(CARD, name=name, digest=name), CARD.weight_bytes)
    for name in (f"step-{number:04}" for number in range(1000))
}


@dataclass(frozen=True, slots=True)
class RunningJob:
    """A claimed job."""

    id: str
    attempt: int


class SimulatedFleet:
    """A Redis with registered workers and waiting jobs. Its methods call one script each, as workers and API do."""

    def __init__(self, url: str, *, workers: int, backlog: int) -> None:
        """Register the workers and fill the queue: `backlog` jobs wait, dispatched or not."""
        self.redis = redis.Redis.from_url(url)
        self.redis.flushall()
        settings = Settings(redis_url=url).model_copy(
            update={"worker_ttl_s": FOREVER_S, "lease_s": FOREVER_S, "reap_every_s": FOREVER_S}
        )
        self.store = WorkerStore(self.redis, settings)
        self._reaping_store = WorkerStore(self.redis, settings.model_copy(update={"reap_every_s": 0.0}))
        self.store.check_schema()
        self.workers = [self._worker(number) for number in range(workers)]
        for worker in self.workers:
            self.store.register(worker, CARD)
        self._switching_store = SwitchingStore(self.redis, settings)
        self.offer()
        self._turns = cycle(range(workers))
        #: Length of the logs that `append_each` writes, in tokens.
        self._appended = 0
        self._input = Generation(prompt="12+34=", sampling=SamplingParams(max_tokens=MAX_TOKENS)).to_json()
        self._fill(backlog)

    # The API's side

    def submit(self, job_id: str) -> None:
        """Submit a job."""
        scripts.get("submit").call(self.redis, *self._submission(job_id))

    def view(self, job_id: str) -> None:
        """Read a job."""
        scripts.get("view").call(self.redis, job_id)

    def versions(self, job_ids: Sequence[str]) -> None:
        """Poll watched jobs."""
        scripts.get("versions").call(self.redis, *job_ids)

    def changes(self, job_id: str) -> None:
        """Read what is new, for a stream."""
        scripts.get("changes").call(self.redis, job_id, "0-0")

    def cancel(self, job_id: str) -> None:
        """Cancel a job."""
        scripts.get("cancel").call(self.redis, job_id)

    def page(self, *, limit: int = 20, owner: str = "") -> None:
        """Read one page of jobs."""
        scripts.get("list").call(self.redis, "", owner, limit, "", "")

    def queue_load(self) -> None:
        """Read the queue's load."""
        scripts.get("queue_load").call(self.redis, CHECKPOINT)

    def worker_counts(self) -> None:
        """Read which checkpoints are served."""
        scripts.get("worker_counts").call(self.redis)

    # The workers' side

    def next_worker(self) -> WorkerInfo:
        """One worker after the other."""
        return self.workers[next(self._turns)]

    def heartbeat(self) -> None:
        """The heartbeat of the next worker."""
        self.store.heartbeat(self.next_worker())

    def offer(self) -> None:
        """The heartbeat of the switching worker."""
        self._switching_store.offer(SWITCHING, OFFERS)

    def next_switch(self) -> None:
        """The decision of the switching worker, while no job waits for what it offers."""
        assert self._switching_store.next_switch(SWITCHING) is None

    def restart(self, worker: WorkerInfo) -> WorkerInfo:
        """Register a later run of a worker that has deregistered."""
        later = replace(worker, incarnation=worker.incarnation + "'")
        self.store.register(later, CARD)
        self.workers[self.workers.index(worker)] = later
        return later

    def deregister(self, worker: WorkerInfo) -> None:
        """Remove a worker."""
        self.store.deregister(worker)

    def take(self) -> str:
        """Take a message from Celery's list, as kombu does, and return the job's id."""
        # redis-py's types also allow decoded and asynchronous replies.
        message: bytes = self.redis.rpop(keys.queue(CHECKPOINT))  # type: ignore[assignment]
        return str(json.loads(message)["headers"]["id"])

    def forget_message(self, job_id: str) -> None:
        """Remove the message of a job that has ended from Celery's list."""
        self.redis.lrem(keys.queue(CHECKPOINT), 1, _message(job_id))

    def claim(self, job_id: str, worker: WorkerInfo) -> RunningJob:
        """Claim a job."""
        claimed = self.store.claim(
            job_id, worker=worker.name, incarnation=worker.incarnation, digest=CARD.digest, prompt_tokens=6
        )
        assert isinstance(claimed, Claimed), claimed
        return RunningJob(job_id, claimed.attempt)

    def append(self, job: RunningJob, *, before: int = 0) -> None:
        """Append tokens. The log has `before` tokens already."""
        self.store.flush([_tokens(job, before)])

    def append_each(self, jobs: Sequence[RunningJob]) -> None:
        """Append tokens to all jobs of a worker, in one round trip."""
        before = self._appended
        self._appended += TOKENS
        self.store.flush([_tokens(job, before) for job in jobs])

    def renew(self, jobs: Sequence[RunningJob]) -> None:
        """Renew the leases of a worker's jobs."""
        self.store.renew({job.id: job.attempt for job in jobs})

    def finish(self, job: RunningJob, *, before: int = TOKENS) -> None:
        """Finish a job whose log has `before` tokens."""
        self.store.flush(
            [
                FinishJob(
                    tokens=AppendTokens(
                        job_id=job.id, attempt=job.attempt, before=before, token_ids=(1,), pieces=("1",)
                    ),
                    tail="",
                    status=Status.SUCCEEDED,
                    finish_reason=FinishReason.STOP,
                    completion="0123456789+-*/=." * (before // TOKENS),
                )
            ]
        )

    def reap(self) -> None:
        """Run the reaper."""
        self._reaping_store.reap()

    def reap_throttled(self) -> None:
        """Call the reaper when another process has just run it."""
        self.store.reap()

    # What is in Redis

    def _worker(self, number: int) -> WorkerInfo:
        return WorkerInfo(
            name=f"{CHECKPOINT}-{number:04}@host",
            incarnation="first",
            checkpoint=CHECKPOINT,
            device="cpu",
            slots=SLOTS,
            pid=1,
            host="host",
            digest=CARD.digest,
            state=WorkerState.IDLE,
            kv_tokens=32_768,
            kv_tokens_free=32_768,
        )

    def _submission(self, job_id: str) -> list[scripts.Argument]:
        record: dict[str, scripts.Argument] = {
            "owner": "anybody",
            "digest": CARD.digest,
            "input": self._input,
            "metadata": "{}",
            "warnings": "[]",
            "result_ttl_ms": 86_400_000,
            "message": _message(job_id),
            "max_tokens": MAX_TOKENS,
            "predicted_ms": 1000,
            "reply_to": keys.reply_channel("simulated"),
        }
        fields = [part for field in record.items() for part in field]
        reserve = RESERVE_PER_JOB + RESERVE_PER_TOKEN * MAX_TOKENS
        return [CHECKPOINT, 5, 10_000_000, "", "", "", job_id, reserve, len(fields), *fields]

    def _fill(self, jobs: int) -> None:
        script = scripts.get("submit")
        self.redis.script_load(script.text)
        for first in range(0, jobs, CALLS_AT_ONCE):
            with self.redis.pipeline(transaction=False) as pipeline:
                for _ in range(min(CALLS_AT_ONCE, jobs - first)):
                    pipeline.evalsha(script.sha, 0, *map(str, self._submission(new_job_id())))
                pipeline.execute()


def _tokens(job: RunningJob, before: int) -> AppendTokens:
    token_ids, pieces = tuple(range(TOKENS)), tuple("0123456789+-*/=.")
    return AppendTokens(job_id=job.id, attempt=job.attempt, before=before, token_ids=token_ids, pieces=pieces)


def _message(job_id: str) -> str:
    """A message with a job id, as long as Celery's."""
    return json.dumps({"headers": {"id": job_id}, "body": "x" * MESSAGE_CHARACTERS})
