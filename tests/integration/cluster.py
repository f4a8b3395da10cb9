"""Workers in real processes on one Redis, with the front end's store in the test's process."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from bench.processes import Engine, children, stop_all
from tasks.generation import Generation
from tasks.job import Job, Status, TimeLimits
from tasks.job_id import new_job_id
from tasks.redis_client.connections import make_async, make_sync
from tasks.settings import Settings
from tasks.store import keys
from tasks.store.job_store import JobStore
from tasks.store.new_job import NewJob
from tasks.token_log import TokenLog
from tasks.worker_info import WorkerInfo
from tests.conftest import running_redis
from tests.helpers.gate import Gate
from tests.helpers.requests import make_generation
from tests.helpers.same_text import assert_undisturbed
from tests.integration.stack import ROOT, START_S, Process, Stack, until

__all__ = ["DEADLINE_S", "TINY", "Cluster", "Engine", "children", "creep", "long_generation", "stopped"]

#: A reference checkpoint with the vocabulary of the guide and a context of 256 tokens.
TINY = ROOT / "tests" / "fixtures" / "golden" / "E1b-seed" / "step_000102"
#: Steps that `creep` allows at a time, and how long it then waits for the worker to write the tokens, in seconds.
STEPS = 4
WRITTEN_S = 0.1
#: How long to wait for something that takes milliseconds on a quiet machine, in seconds.
DEADLINE_S = 30.0


def long_generation(seed: int = 7, *, prompt: str = "12+3", max_tokens: int = 200) -> Generation:
    """A request that decodes all of its tokens."""
    return make_generation(prompt=prompt, max_tokens=max_tokens, temperature=0.8, seed=seed, ignore_eos=True)


class Cluster:
    """Workers of one checkpoint, and a client of their queue."""

    def __init__(self, redis_url: str, log_dir: Path, checkpoint: Path = TINY, **settings: str) -> None:
        """`settings` are those of `Stack`."""
        # Tokens are written soon even if no client streams them: a test can then stop an engine after a few tokens.
        self.stack = Stack(redis_url, log_dir, **{"flush_interval_ms": "1", **settings})
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
        """Start a worker; with `wait`, return when it takes jobs."""
        return self.stack.worker(str(self.checkpoint), wait=wait, module="tests.helpers.gated_worker", **settings)

    def workers(self, count: int, **settings: str) -> list[Process]:
        """Start several workers at once, and wait until all of them take jobs."""
        started = [self.worker(wait=False, **settings) for _ in range(count)]
        for process in started:
            process.wait_for_line(" ready.")
        return started

    def submit(self, generation: Generation, limits: TimeLimits | None = None) -> str:
        """Id of a new job."""
        name = self.checkpoint.name
        card = until(lambda: self._loop.run(self._store.card(name)), f"a card of {name}", timeout_s=START_S)
        new = NewJob(
            id=new_job_id(),
            owner="anybody",
            checkpoint=name,
            digest=card.digest,
            generation=generation,
            limits=limits or TimeLimits(),
        )
        return self._loop.run(self._store.submit(new)).job_id

    def submit_all(self, generations: Iterable[Generation]) -> list[str]:
        """Ids of new jobs."""
        return [self.submit(generation) for generation in generations]

    def begin(self, engines: Sequence[Engine], generations: Iterable[Generation], *, tokens: int = 5) -> list[str]:
        """Ids of new jobs that have at least `tokens` tokens. The engines are stopped afterwards."""
        stop_all(engines)
        job_ids = self.submit_all(generations)
        self.decode_a_little(engines, job_ids, tokens=tokens)
        return job_ids

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

    def log(self, job_id: str) -> TokenLog:
        """The token log of a job. Each of its entries begins where the one before it ends."""
        log = TokenLog(tuple(self._loop.run(self._store.log(job_id))))
        ends = [0, *(entry.after for entry in log.entries)]
        assert [entry.before for entry in log.entries] == ends[:-1]
        return log

    def delete(self, job_id: str) -> None:
        """Delete a job that exists."""
        assert self._loop.run(self._store.delete(job_id))

    def workers_now(self) -> list[WorkerInfo]:
        """The live workers, by their last heartbeats."""
        return self._loop.run(self._store.workers(self.checkpoint.name))

    def token_ids(self, job_id: str) -> tuple[int, ...]:
        """The tokens of a job."""
        return self.log(job_id).token_ids

    def heartbeat(self, worker: Process) -> WorkerInfo | None:
        """The last heartbeat of a worker; None if the worker counts as gone."""
        return next((info for info in self.workers_now() if info.pid == worker.pid), None)

    def holder(self, job_id: str) -> Process:
        """The worker that runs a job."""
        name = self.job(job_id).worker

        def found() -> Process | None:
            beats = [(worker, self.heartbeat(worker)) for worker in self.stack.processes]
            return next((worker for worker, beat in beats if beat is not None and beat.name == name), None)

        # The heartbeat of a worker that waits for a processor may be late.
        return until(found, f"a heartbeat of {name}", timeout_s=DEADLINE_S)

    def assert_undisturbed(self, *jobs: Job) -> None:
        """Assert that each job has succeeded with the text of an engine in this process, also in its log."""
        assert_undisturbed(self.checkpoint, jobs, [self.log(job.id) for job in jobs])

    def until_cancel_received(self, job_id: str) -> None:
        """Wait until a worker has received the cancel of a job that it runs, and has sent it to its engine."""

        def received() -> bool:
            lines = (line for worker in self.stack.processes for line in worker.output.splitlines())
            return any('"cancel_received"' in line and job_id in line for line in lines)

        until(received, f"the cancel of {job_id}", timeout_s=DEADLINE_S)

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

    def until_busy(self, worker: Process) -> list[str]:
        """Wait until a worker runs jobs. Returns their ids."""

        def busy() -> list[str]:
            beat = self.heartbeat(worker)
            ids = [raw.decode() for raw in self.redis.zrange(keys.running(self.checkpoint.name), 0, -1)]
            return [job_id for job_id in ids if beat is not None and self.job(job_id).worker == beat.name]

        return until(busy, f"jobs of {worker.name}", timeout_s=DEADLINE_S)

    def until_idle(self, worker: Process) -> None:
        """Wait until the heartbeat of a worker says that it runs nothing and all its KV memory is free."""

        def idle() -> bool:
            beat = self.heartbeat(worker)
            return beat is not None and beat.running == 0 and beat.kv_tokens_free == beat.kv_tokens > 0

        until(idle, f"an idle {worker.name}", timeout_s=DEADLINE_S)

    def when_attempt(self, job_id: str, attempt: int) -> Job:
        """The job, once this attempt runs."""

        def there() -> Job | None:
            job = self.job(job_id)
            return job if job.status is Status.RUNNING and job.attempt == attempt else None

        return until(there, f"attempt {attempt} of {job_id}", timeout_s=START_S)

    def until_quiet(self) -> None:
        """Wait until no message is on the list, and all taken messages are acknowledged."""
        queue = keys.queue(self.checkpoint.name)
        until(lambda: not self.redis.exists(queue, "unacked"), "the end of all messages", timeout_s=DEADLINE_S)

    def decode_a_little(self, engines: Sequence[Engine], job_ids: Sequence[str], *, tokens: int = 5) -> None:
        """Resume stopped engines until each of these jobs has at least `tokens` tokens, and stop them again."""
        # Wait until all of them run, or the first may be over before the last one starts.
        for job_id in job_ids:
            self.when(job_id, Status.RUNNING)
        creep(engines, lambda: min(self.job(job_id).tokens for job_id in job_ids) >= tokens)
        assert {self.job(job_id).status for job_id in job_ids} == {Status.RUNNING}


@contextmanager
def own_cluster(checkpoint: Path = TINY, **settings: str) -> Iterator[Cluster]:
    """A cluster with a folder and a Redis server of its own, which tests of a module can share."""
    # The path of a socket must be short.
    folder = Path(tempfile.mkdtemp(prefix="cel-"))
    with running_redis(folder) as url:
        cluster = Cluster(f"{url}?db=0", folder, checkpoint, **settings)
        try:
            yield cluster
        finally:
            cluster.close()
    shutil.rmtree(folder)


@contextmanager
def stopped(engines: Sequence[Engine]) -> Iterator[None]:
    """Stop engines inside the `with` block: jobs that run cannot end, however fast the machine is."""
    for engine in engines:
        engine.stop()
    try:
        yield
    finally:
        for engine in engines:
            with suppress(ProcessLookupError):
                engine.resume()


def creep(
    engines: Sequence[Engine], condition: Callable[[], object], *, timeout_s: float = DEADLINE_S, steps: int = STEPS
) -> None:
    """Let stopped engines make a few `steps` at a time until `condition` is true. They are stopped afterwards.

    A text that needs more steps does not end, however fast the engines and however slow the other processes are.
    """
    gates = [Gate(engine.pid) for engine in engines]
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        make_steps(engines, gates, steps)
        # The worker needs a moment to write the new tokens.
        with suppress(AssertionError):
            until(condition, "the condition", timeout_s=WRITTEN_S)
    for gate in gates:
        gate.open()


def make_steps(engines: Sequence[Engine], gates: Sequence[Gate], steps: int) -> None:
    """Let stopped engines make this many steps, or as many as they have work for."""
    limits = [(gate, gate.allow(steps)) for gate in gates]
    for engine in engines:
        engine.resume()
    with suppress(AssertionError):  # An engine without work makes no steps.
        until(lambda: all(gate.has_reached(limit) for gate, limit in limits), "the steps", timeout_s=WRITTEN_S)
    stop_all(engines)
