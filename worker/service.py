"""The worker of one checkpoint: engine, publisher, keeper and task bodies, put together."""

from __future__ import annotations

import os
import secrets
import socket
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from functools import partial

import structlog
from redis.exceptions import RedisError

from tasks.settings import Settings
from tasks.store import keys
from tasks.store.connections import make_sync, redacted
from tasks.store.worker_store import WorkerStore
from tasks.worker_info import WorkerInfo, WorkerState
from worker import health
from worker.checkpoints.folder import CheckpointFolder
from worker.checkpoints.tokenizers import load_tokenizer
from worker.engine.kv.budget import KvBudget
from worker.engine_process.client import EngineLoadError
from worker.engine_process.messages import Ready, Start
from worker.engine_process.supervisor import EngineSupervisor
from worker.jobs.cancel_listener import BellListener
from worker.jobs.job_runner import JobRunner
from worker.jobs.kv_admission import KvGate
from worker.jobs.lease_keeper import Keeper
from worker.jobs.publisher import Publisher

log = structlog.get_logger(__name__)

#: Wait between two tries to reach Redis at the start, in seconds.
REDIS_RETRY_S = 1.0
#: How long a drain waits for the task bodies, in seconds.
DRAIN_S = 1.0


class WorkerService:
    """Everything that stands beside Celery in the worker. Built by the bootstep, used by the task body."""

    def __init__(
        self, settings: Settings, folder: CheckpointFolder, name: str, *, give_up: Callable[[str], None]
    ) -> None:
        """`give_up` is called, from some thread, with a message for people when the worker can go on no longer."""
        self._settings = settings
        self._folder = folder
        self._redis = make_sync(settings)
        self._store = WorkerStore(self._redis, settings)
        self._publisher = Publisher(
            self._store,
            flush_interval_s=settings.flush_interval_ms / 1000,
            abort=lambda job_id: self._engine.abort(job_id),
        )
        self._engine = EngineSupervisor(
            Start(
                folder=folder,
                slots=settings.slots,
                kv_memory_mb=settings.kv_memory_mb,
                prefill_chunk_tokens=settings.prefill_chunk_tokens,
                device=settings.device,
                threads=settings.threads,
                softcap=settings.softcap,
                weights=settings.weights,
            ),
            load_timeout_s=settings.load_timeout_s,
            on_updates=self._publisher.take,
            on_death=self._publisher.engine_died,
            on_give_up=give_up,
        )
        self._keeper = Keeper(
            self._store,
            self._publisher,
            info=self._info_now,
            withdraw_over=lambda: self._runner_now().withdraw_over(),
            on_alive=self._look_after_engine,
            on_conflict=give_up,
            period_s=settings.heartbeat_s,
        )
        self._bells = BellListener(self._redis, keys.worker_channel(name), self._publisher.hear_cancel)
        self._runner: JobRunner | None = None
        self._info = WorkerInfo(
            name=name,
            incarnation=secrets.token_hex(8),
            checkpoint=folder.name,
            device=settings.device,
            slots=settings.slots,
            pid=os.getpid(),
            host=socket.gethostname(),
        )
        self._speed = _Speedometer()

    def start(self, *, should_stop: Callable[[], bool]) -> bool:
        """Load the checkpoint and register. False where `should_stop` said so meanwhile.

        Raises EngineLoadError, CheckpointError, CardConflictError and SchemaError, each with a message for people.
        Where it does not return True, nothing is left running.
        """
        with ExitStack() as undo:
            undo.callback(self._redis.close)
            undo.callback(self._engine.stop)
            try:
                self._with_redis(self._store.check_schema, should_stop)
                log.info("loading", checkpoint=self._folder.name, path=str(self._folder.path))
                ready = self._engine.start(should_stop=should_stop)
                self._with_redis(partial(self._register, ready), should_stop)
            except (_StoppedError, EngineLoadError):
                if should_stop():
                    return False
                raise
            undo.pop_all()
        self._publisher.start()
        self._keeper.start()
        self._bells.start()
        log.info(
            "model_loaded",
            checkpoint=ready.card.name,
            device=ready.device,
            parameters=ready.card.parameters,
            weights=ready.card.weights,
            load_s=round(ready.load_s, 2),
            slots=self._info.slots,
            kv_tokens=ready.kv_tokens,
        )
        return True

    def _register(self, ready: Ready) -> None:
        tokenizer = load_tokenizer(self._folder, ready.card.vocab_size)
        self._info = replace(self._info, device=ready.device, digest=ready.card.digest, kv_tokens=ready.kv_tokens)
        self._runner = JobRunner(
            store=self._store,
            engine=self._engine,
            publisher=self._publisher,
            gate=KvGate(KvBudget(ready.kv_tokens)),
            tokenizer=tokenizer,
            card=ready.card,
            worker=self._info.name,
            incarnation=self._info.incarnation,
        )
        self._store.register(self._info_now(), ready.card)

    def run(self, job_id: str) -> None:
        """The task body."""
        self._runner_now().run(job_id)

    def cancel(self, job_id: str) -> None:
        """Cancel a job, running or waiting, on behalf of Celery's own cancel."""
        self._store.cancel(job_id)

    def drain(self) -> None:
        """Hand every running job back with its tokens, and end everything that `start` began. Celery takes no more."""
        log.info("handing_back", running=len(self._publisher.running()))
        self._runner_now().close()
        # What is handed back is not for this worker: it leaves first, and its heart stops before that.
        self._keeper.stop()
        try:
            self._store.deregister(self._info)
        except RedisError as error:
            log.warning("deregister_failed", error=str(error))
        self._publisher.stop()
        self._engine.stop()
        if not self._runner_now().wait_idle(DRAIN_S):
            log.error("bodies_left")
        self._bells.stop()
        self._redis.close()

    def kill_engine(self) -> None:
        """End the engine process, and wait for nothing."""
        self._engine.kill()

    def _with_redis(self, call: Callable[[], None], should_stop: Callable[[], bool]) -> None:
        """`call`, as soon as Redis is there. Raises _StoppedError."""
        while True:
            try:
                return call()
            except RedisError as error:
                log.warning("waiting_for_redis", url=redacted(self._settings.redis_url), error=str(error))
            time.sleep(REDIS_RETRY_S)
            if should_stop():
                raise _StoppedError

    def _runner_now(self) -> JobRunner:
        if self._runner is None:
            raise RuntimeError("the checkpoint is not loaded yet")
        return self._runner

    def _look_after_engine(self) -> None:
        hung = self._engine.end_hung(self._settings.engine_silence_s)
        if not hung and self._settings.health_file is not None:
            health.touch(self._settings.health_file)

    def _info_now(self) -> WorkerInfo:
        report = self._engine.report
        running = len(self._publisher.running())
        return replace(
            self._info,
            state=WorkerState.BUSY if running else WorkerState.IDLE,
            running=running,
            kv_tokens_free=self._info.kv_tokens if report is None else report.kv_tokens_free,
            tokens_per_s=self._speed.per_second(self._publisher.tokens_decoded),
        )


class _StoppedError(Exception):
    """A signal came while the worker waited."""


class _Speedometer:
    """Tokens a second between two heartbeats."""

    def __init__(self) -> None:
        self._count = 0
        self._at = time.monotonic()

    def per_second(self, count: int) -> float:
        now = time.monotonic()
        speed = (count - self._count) / max(now - self._at, 1e-3)
        self._count, self._at = count, now
        return round(speed, 1)
