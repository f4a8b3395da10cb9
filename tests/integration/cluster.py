"""Workers in real processes on one Redis, with the front end's store in this one."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from bench.processes import Engine, children
from tasks import keys
from tasks.connections import make_async, make_sync
from tasks.generation import Generation
from tasks.job import Job, Status
from tasks.job_id import new_job_id
from tasks.job_store import JobStore, NewJob
from tasks.settings import Settings
from tasks.token_log import TokenLog
from tests.integration.stack import ROOT, START_S, Process, Stack, until
from tests.same_text import assert_undisturbed

__all__ = ["DEADLINE_S", "TINY", "Cluster", "Engine", "children", "long_generation", "stopped"]

#: A reference checkpoint of the guide's vocabulary and a context of 256 tokens.
TINY = ROOT / "tests" / "fixtures" / "golden" / "E1b-seed" / "step_000102"
#: Waiting for something that takes milliseconds on a quiet machine.
DEADLINE_S = 30.0


def long_generation(seed: int = 7, *, prompt: str = "12+3", max_tokens: int = 200) -> Generation:
    """A request that decodes all of its tokens."""
    return Generation(prompt=prompt, max_tokens=max_tokens, temperature=0.8, seed=seed, ignore_eos=True)


class Cluster:
    """Workers of one checkpoint, and a client of theirs."""

    def __init__(self, redis_url: str, log_dir: Path, checkpoint: Path = TINY, **settings: str) -> None:
        """`settings` are as `Stack` has them."""
        self.stack = Stack(redis_url, log_dir, **settings)
        self.settings = Settings(redis_url=redis_url)
        self.redis = make_sync(self.settings)
        self.checkpoint = checkpoint
        self._loop = asyncio.Runner()
        self._asynchronous = make_async(self.settings)
        self._store = JobStore(self._asynchronous, self.settings)

    def close(self) -> None:
        """End all processes and connections."""
        self.stack.close()
        self._loop.run(self._asynchronous.aclose())
        self._loop.close()
        self.redis.close()

    def worker(self, *, wait: bool = True, **settings: str) -> Process:
        """Start a worker."""
        return self.stack.worker(str(self.checkpoint), wait=wait, **settings)

    def workers(self, count: int, **settings: str) -> list[Process]:
        """Start workers side by side, and wait for all of them."""
        started = [self.worker(wait=False, **settings) for _ in range(count)]
        for process in started:
            process.wait_for_line(" ready.")
        return started

    def submit(self, generation: Generation) -> str:
        """Id of a new job."""
        name = self.checkpoint.name
        card = until(lambda: self._loop.run(self._store.card(name)), f"a card of {name}", timeout_s=START_S)
        new = NewJob(id=new_job_id(), owner="anybody", checkpoint=name, digest=card.digest, generation=generation)
        return self._loop.run(self._store.submit(new)).job_id

    def submit_all(self, generations: Iterable[Generation]) -> list[str]:
        """Ids of new jobs."""
        return [self.submit(generation) for generation in generations]

    def job(self, job_id: str) -> Job:
        """A job that exists."""
        job = self._loop.run(self._store.get(job_id))
        assert job is not None
        return job

    def cancel(self, job_id: str) -> Job:
        """Cancel a job that exists."""
        job = self._loop.run(self._store.cancel(job_id))
        assert job is not None
        return job

    def token_ids(self, job_id: str) -> tuple[int, ...]:
        """The token log of a job."""
        return TokenLog(tuple(self._loop.run(self._store.log(job_id)))).token_ids

    def assert_undisturbed(self, job: Job) -> None:
        """A job has succeeded with the text that the engine in this process gives it, alone."""
        assert_undisturbed(self.checkpoint, job, self.token_ids(job.id))

    def finished(self, job_id: str) -> Job:
        """The job, once it is over."""

        def over() -> Job | None:
            job = self.job(job_id)
            return job if job.status.terminal else None

        return until(over, f"the end of {job_id}", timeout_s=START_S)

    def when(self, job_id: str, status: Status) -> Job:
        """The job, once it has this status."""

        def there() -> Job | None:
            job = self.job(job_id)
            return job if job.status is status else None

        return until(there, f"{job_id} {status}", timeout_s=DEADLINE_S)

    def until_quiet(self) -> None:
        """Wait until no message is on the list, and none is taken but not acknowledged."""
        queue = keys.queue(self.checkpoint.name)
        until(lambda: not self.redis.exists(queue, "unacked"), "the end of all messages", timeout_s=DEADLINE_S)

    def decode_a_little(self, engines: Sequence[Engine], job_ids: Sequence[str], *, tokens: int = 5) -> None:
        """Let stopped engines go on until each of these running jobs has some tokens, and stop them again."""
        deadline = time.monotonic() + DEADLINE_S
        while min(self.job(job_id).tokens for job_id in job_ids) < tokens:
            assert time.monotonic() < deadline
            for engine in engines:
                engine.resume()
            time.sleep(0.005)
            for engine in engines:
                engine.stop()
        assert {self.job(job_id).status for job_id in job_ids} == {Status.RUNNING}


@contextmanager
def stopped(engines: Sequence[Engine]) -> Iterator[None]:
    """Engines that make no step meanwhile: what runs stays running, whatever the machine's speed."""
    for engine in engines:
        engine.stop()
    try:
        yield
    finally:
        for engine in engines:
            with suppress(ProcessLookupError):
                engine.resume()
