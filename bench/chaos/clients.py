"""HTTP clients for the chaos test. Each of them always has one job in the system."""

from __future__ import annotations

import asyncio
import random
import uuid
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx

from bench.chaos.queue_view import QueueView
from bench.chaos.stream_reader import StreamRecord, read_stream
from bench.chaos.system import CHECKPOINTS, Api
from tasks.job import Job

#: Number of clients, and so of jobs that wait or run at any time.
CLIENTS = 30
#: Smallest and largest `max_tokens` of a job.
FEWEST_TOKENS = 20
MOST_TOKENS = 600
#: Timeout of a request, in seconds. The request is then repeated.
ANSWER_S = 5.0
#: Pause before a request is repeated, in seconds.
REPEAT_S = 0.1
#: Pause between two checks of the records of unfinished jobs, in seconds.
RECORDS_S = 0.05
#: Share of the jobs that are cancelled, and of those whose stream is read.
CANCELLED = 0.07
STREAMED = 0.3
#: Longest time before a job is cancelled, in seconds.
CANCEL_WITHIN_S = 1.5


@dataclass
class AcceptedJob:
    """A job that an API process accepted, and what was observed of it."""

    id: str
    #: Its client cancels it.
    cancelled: bool
    #: The largest number of tokens that its record has had.
    tokens: int = 0
    #: Its record when its terminal state was first seen.
    final: Job | None = None
    #: Its record has disappeared.
    gone: bool = False
    #: The number of tokens in its record has decreased.
    shrank: bool = False
    #: Its stream; None if no client read it.
    stream: StreamRecord | None = None
    #: Set when the job has ended or its record has disappeared.
    ended: asyncio.Event = field(default_factory=asyncio.Event)


class Clients:
    """All clients, and the jobs that were accepted from them."""

    def __init__(self, apis: Sequence[Api], view: QueueView, seed: int) -> None:
        self._apis = apis
        self._view = view
        self._seed = seed
        self._stopping = False
        #: Every accepted job.
        self.jobs: list[AcceptedJob] = []
        #: Answers that no client should get: status and body.
        self.unexpected: Counter[str] = Counter()

    @property
    def unfinished(self) -> list[AcceptedJob]:
        """Jobs whose end was not seen yet."""
        return [job for job in self.jobs if not job.ended.is_set()]

    async def run(self) -> None:
        """Send jobs until `stop` is called. Returns when every job has ended."""
        async with httpx.AsyncClient(timeout=ANSWER_S) as http:
            records = asyncio.create_task(self._check_records(), name="records")
            try:
                async with asyncio.TaskGroup() as clients:
                    for number in range(CLIENTS):
                        clients.create_task(self._client(http, random.Random(f"{self._seed}/{number}")))
            finally:
                records.cancel()

    def stop(self) -> None:
        """Stop sending jobs."""
        self._stopping = True

    async def _client(self, http: httpx.AsyncClient, rng: random.Random) -> None:
        """Send one job after the other."""
        while not self._stopping:
            body = random_body(rng)
            cancel_after_s = rng.uniform(0, CANCEL_WITHIN_S) if rng.random() < CANCELLED else None
            key = {"Idempotency-Key": f'"{uuid.UUID(int=rng.getrandbits(128))}"'}
            answer = await self._post(http, rng, "/v1/jobs", body, key)
            if answer is None:
                await asyncio.sleep(REPEAT_S)
                continue
            job = AcceptedJob(answer["id"], cancel_after_s is not None)
            self.jobs.append(job)
            async with asyncio.TaskGroup() as tasks:
                if rng.random() < STREAMED:
                    job.stream = StreamRecord()
                    # A generator of its own, because the number of reconnections does not depend on the seed.
                    stream_rng = random.Random(rng.random())
                    tasks.create_task(read_stream(http, self._apis, stream_rng, job.stream, job.id))
                if cancel_after_s is not None:
                    await asyncio.sleep(cancel_after_s)
                    await self._post(http, rng, f"/v1/jobs/{job.id}/cancel", None, {})
                await job.ended.wait()

    async def _post(
        self, http: httpx.AsyncClient, rng: random.Random, path: str, body: Any, headers: dict[str, str]
    ) -> dict[str, Any] | None:
        """Repeat a POST, each time to a random API process, until it succeeds. Returns None if it is refused."""
        while True:
            api = rng.choice(self._apis)
            try:
                answer = await http.post(f"{api.url}{path}", json=body, headers=headers)
            except httpx.TransportError:
                # The process was killed or does not listen yet. It may have accepted the job before it was killed.
                pass
            else:
                if answer.is_success:
                    result: dict[str, Any] = answer.json()
                    return result
                if answer.status_code != httpx.codes.SERVICE_UNAVAILABLE:
                    self.unexpected[f"{answer.status_code} {answer.text}"] += 1
                if answer.is_client_error:
                    return None
            await asyncio.sleep(REPEAT_S)

    async def _check_records(self) -> None:
        """Update the unfinished jobs from their records in Redis, until this is cancelled."""
        while True:
            jobs = {job.id: job for job in self.unfinished}
            progress = await self._view.progress(list(jobs))
            for job_id, job in jobs.items():
                seen = progress.get(job_id)
                if seen is None:
                    job.gone = True
                    job.ended.set()
                    continue
                job.shrank = job.shrank or seen.tokens < job.tokens
                job.tokens = max(job.tokens, seen.tokens)
                if seen.status.terminal:
                    job.final = await self._view.job(job_id)
                    job.ended.set()
            await asyncio.sleep(RECORDS_S)


def random_body(rng: random.Random) -> dict[str, Any]:
    """Return the body of a random request for one of the checkpoints. Most of them ignore stop tokens."""
    digits = rng.randint(1, 12)
    prompt = f"{rng.randrange(10**digits)}{rng.choice('+-')}{rng.randrange(10**digits)}="
    return {
        "prompt": prompt,
        "model": rng.choice(CHECKPOINTS),
        "max_tokens": rng.randint(FEWEST_TOKENS, MOST_TOKENS),
        "temperature": rng.choice([0.0, 0.8]),
        "top_k": rng.choice([None, None, 5]),
        "seed": rng.getrandbits(53),
        "ignore_eos": rng.random() < 0.9,
        "priority": rng.randint(0, 9),
        "wait_for_worker": True,
    }
