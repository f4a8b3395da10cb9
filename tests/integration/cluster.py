"""Workers in real processes on one Redis, with the front end's store in this one."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

from tasks import keys
from tasks.connections import make_async, make_sync
from tasks.generation import Generation
from tasks.job import Job, Status
from tasks.job_id import new_job_id
from tasks.job_store import JobStore, NewJob
from tasks.settings import Settings
from tasks.token_log import TokenLog
from tests.integration.stack import ROOT, START_S, Process, Stack, until
from worker.local import Answer, LocalModel, Sampling

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

    def when_taken_up(self, job_id: str, attempt: int) -> Job:
        """The job, once this attempt of it runs."""

        def there() -> Job | None:
            job = self.job(job_id)
            return job if job.status is Status.RUNNING and job.attempt == attempt else None

        return until(there, f"attempt {attempt} of {job_id}", timeout_s=START_S)

    def until_quiet(self) -> None:
        """Wait until no message is on the list, and none is taken but not acknowledged."""
        queue = keys.queue(self.checkpoint.name)
        until(lambda: not self.redis.exists(queue, "unacked"), "the end of all messages", timeout_s=DEADLINE_S)

    def decode_a_little(self, engines: Sequence[Engine], job_ids: Sequence[str], *, tokens: int = 5) -> None:
        """Let stopped engines go on until each of these running jobs has some tokens, and stop them again."""
        creep(engines, lambda: min(self.job(job_id).tokens for job_id in job_ids) >= tokens)
        assert {self.job(job_id).status for job_id in job_ids} == {Status.RUNNING}


class Engine:
    """The engine process of a worker."""

    def __init__(self, worker: Process) -> None:
        self.pid = next(iter(children(worker.pid)))

    def stop(self) -> None:
        """Let it make no step, and wait until that is so."""
        os.kill(self.pid, signal.SIGSTOP)
        until(lambda: _stat(self.pid)[0] == "T", "the engine's stop")

    def resume(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)

    @property
    def gone(self) -> bool:
        """Whether the process has ended, whoever is to be told."""
        return not Path(f"/proc/{self.pid}").exists() or _stat(self.pid)[0] == "Z"


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


def creep(engines: Sequence[Engine], condition: Callable[[], object], *, timeout_s: float = DEADLINE_S) -> None:
    """Let stopped engines go on by a few steps at a time, until `condition` holds; they are stopped then."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        for engine in engines:
            engine.resume()
        time.sleep(0.005)
        for engine in engines:
            engine.stop()


def children(pid: int) -> list[int]:
    """Processes that a process started."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(FileNotFoundError, ProcessLookupError):
            if _stat(int(entry.name))[1] == str(pid):
                found.append(int(entry.name))
    return found


def _stat(pid: int) -> list[str]:
    """State, parent, and the rest of what the kernel says of a process."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


@cache
def _local(checkpoint: Path) -> LocalModel:
    return LocalModel.load(str(checkpoint), checkpoint.parent, device="cpu", threads=1)


def undisturbed(checkpoint: Path, generation: Generation) -> Answer:
    """What the engine in this process says, alone."""
    model = _local(checkpoint)
    prompt, _ = model.encode(generation.prompt)
    sampling = Sampling(
        max_tokens=generation.max_tokens,
        temperature=generation.temperature,
        top_k=generation.top_k,
        top_p=generation.top_p,
        seed=generation.seed,
        stop_on_newline=generation.stop_on_newline,
        stop=generation.stop,
        ignore_eos=generation.ignore_eos,
    )
    return model.generate(prompt, sampling)
