"""The worker of one checkpoint: engine, publisher, lease keeper and job runner, put together."""

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
from redis import Redis
from redis.exceptions import RedisError

from tasks.connections import make_sync, redacted
from tasks.redis_check import check_redis
from tasks.settings import Settings
from tasks.store import keys
from tasks.store.worker_store import WorkerStore
from tasks.worker_info import WorkerInfo, WorkerState
from worker import health
from worker.checkpoints.folder import CheckpointFolder
from worker.checkpoints.tokenizers import Tokenizer, load_tokenizer
from worker.engine.kv.budget import KvBudget
from worker.engine_process.client import EngineLoadError
from worker.engine_process.messages import Ready, Start
from worker.engine_process.supervisor import EngineSupervisor
from worker.jobs.cancel_listener import CancelListener
from worker.jobs.job_runner import JobRunner
from worker.jobs.kv_admission import KvAdmission
from worker.jobs.lease_keeper import LeaseKeeper
from worker.jobs.publisher import Publisher
from worker.jobs.retry import RetryStoppedError, retry_while_redis_is_away

log = structlog.get_logger(__name__)

#: Wait between two calls while Redis is away at the start, in seconds.
RETRY_S = 1.0
#: How long a drain waits for the task bodies, in seconds.
DRAIN_S = 1.0


class WorkerService:
    """Everything in the worker that is not Celery's. The bootstep starts and drains it; the task body calls `run`."""

    def __init__(
        self,
        settings: Settings,
        *,
        redis: Redis,
        store: WorkerStore,
        engine: EngineSupervisor,
        publisher: Publisher,
        ready: Ready,
        tokenizer: Tokenizer,
        name: str,
        give_up: Callable[[str], None],
    ) -> None:
        """`engine` has loaded its checkpoint: `ready` is its first message."""
        self._settings = settings
        self._redis = redis
        self._store = store
        self._engine = engine
        self._publisher = publisher
        self._ready = ready
        self._info = WorkerInfo(
            name=name,
            incarnation=secrets.token_hex(8),
            checkpoint=ready.card.name,
            device=ready.device,
            slots=settings.slots,
            pid=os.getpid(),
            host=socket.gethostname(),
            digest=ready.card.digest,
            kv_tokens=ready.kv_tokens,
        )
        self._speed = _Speedometer()
        self._runner = JobRunner(
            store=store,
            engine=engine,
            publisher=publisher,
            admission=KvAdmission(KvBudget(ready.kv_tokens)),
            tokenizer=tokenizer,
            card=ready.card,
            worker=name,
            incarnation=self._info.incarnation,
        )
        self._lease_keeper = LeaseKeeper(
            store,
            publisher,
            self._runner,
            info=self._current_info,
            before_heartbeat=self._check_engine,
            on_conflict=give_up,
            period_s=settings.heartbeat_s,
        )
        self._cancel_listener = CancelListener(redis, keys.worker_channel(name), publisher.cancel_requested)

    @classmethod
    def start(
        cls,
        settings: Settings,
        folder: CheckpointFolder,
        name: str,
        *,
        give_up: Callable[[str], None],
        should_stop: Callable[[], bool],
    ) -> WorkerService | None:
        """Load the checkpoint, register the worker, and start the threads. None if `should_stop` returned True.

        `give_up` is called, from any thread, with a message for people when the worker cannot continue. Raises
        EngineLoadError, CheckpointError, CardConflictError, RedisUnusableError and SchemaError, each with a message for
        people. If no service is returned, nothing is left running.
        """
        redis = make_sync(settings)
        store = WorkerStore(redis, settings)
        engine = EngineSupervisor(
            _start_message(settings, folder), load_timeout_s=settings.load_timeout_s, on_give_up=give_up
        )
        publisher = Publisher(store, abort=engine.abort, flush_interval_s=settings.flush_interval_ms / 1000)
        retry = partial(_retry, settings, should_stop)
        with ExitStack() as undo:
            undo.callback(redis.close)
            undo.callback(engine.stop)
            try:
                retry(partial(check_redis, settings))
                retry(store.check_schema)
                log.info("loading", checkpoint=folder.name, path=str(folder.path))
                ready = engine.start(publisher, should_stop=should_stop)
                service = cls(
                    settings,
                    redis=redis,
                    store=store,
                    engine=engine,
                    publisher=publisher,
                    ready=ready,
                    tokenizer=load_tokenizer(folder, ready.card.vocab_size),
                    name=name,
                    give_up=give_up,
                )
                retry(service._register)
            except (RetryStoppedError, EngineLoadError):
                if should_stop():
                    return None
                raise
            undo.pop_all()
        service._start_threads()
        service._log_loaded()
        return service

    def run(self, job_id: str) -> None:
        """The task body."""
        self._runner.run(job_id)

    def cancel(self, job_id: str) -> None:
        """Cancel a job, running or waiting. Celery's own cancel commands call this."""
        self._store.cancel(job_id)

    def drain(self) -> None:
        """Release every running job with its tokens, and end everything that `start` began.

        Celery has stopped taking messages before.
        """
        log.info("draining", running=len(self._publisher.running()))
        self._runner.close()
        # The worker deregisters before it releases jobs, or they would be dispatched to it again. A heartbeat would
        # register it again.
        self._lease_keeper.stop()
        self._deregister()
        self._publisher.stop()
        self._engine.stop()
        self._wait_for_task_bodies()
        self._cancel_listener.stop()
        self._redis.close()

    def kill_engine(self) -> None:
        """Kill the engine process without waiting for its end."""
        self._engine.kill()

    def _register(self) -> None:
        self._store.register(self._current_info(), self._ready.card)

    def _start_threads(self) -> None:
        self._publisher.start()
        self._lease_keeper.start()
        self._cancel_listener.start()

    def _log_loaded(self) -> None:
        card = self._ready.card
        log.info(
            "model_loaded",
            checkpoint=card.name,
            device=self._ready.device,
            parameters=card.parameters,
            weights=card.weights,
            load_s=round(self._ready.load_s, 2),
            slots=self._info.slots,
            kv_tokens=self._ready.kv_tokens,
        )

    def _deregister(self) -> None:
        try:
            self._store.deregister(self._info)
        except RedisError as error:
            log.warning("deregister_failed", error=str(error))

    def _wait_for_task_bodies(self) -> None:
        if not self._runner.wait_idle(DRAIN_S):
            log.error("task_bodies_still_run", after_s=DRAIN_S)

    def _check_engine(self) -> None:
        """Kill an engine that makes no progress. Otherwise touch the health file."""
        killed = self._engine.kill_if_unresponsive(self._settings.engine_silence_s)
        if not killed and self._settings.health_file is not None:
            health.touch(self._settings.health_file)

    def _current_info(self) -> WorkerInfo:
        report = self._engine.report
        running = len(self._publisher.running())
        return replace(
            self._info,
            state=WorkerState.BUSY if running else WorkerState.IDLE,
            running=running,
            kv_tokens_free=self._info.kv_tokens if report is None else report.kv_tokens_free,
            tokens_per_s=self._speed.per_second(self._publisher.tokens_decoded),
        )


def _start_message(settings: Settings, folder: CheckpointFolder) -> Start:
    return Start(
        folder=folder,
        slots=settings.slots,
        kv_memory_mb=settings.kv_memory_mb,
        prefill_chunk_tokens=settings.prefill_chunk_tokens,
        device=settings.device,
        threads=settings.threads,
        softcap=settings.softcap,
        weights=settings.weights,
    )


def _retry(settings: Settings, should_stop: Callable[[], bool], call: Callable[[], None]) -> None:
    """Repeat `call` while Redis is away. Raises RetryStoppedError when `should_stop` returns True."""

    def wait_for_stop(wait_s: float) -> bool:
        time.sleep(wait_s)
        return should_stop()

    retry_while_redis_is_away(
        call,
        wait_s=RETRY_S,
        wait_for_stop=wait_for_stop,
        event="waiting_for_redis",
        url=redacted(settings.redis_url),
    )


class _Speedometer:
    """Measures tokens per second between two calls."""

    def __init__(self) -> None:
        self._count = 0
        self._at = time.monotonic()

    def per_second(self, count: int) -> float:
        """Speed since the last call, where `count` is the number of tokens since the start."""
        now = time.monotonic()
        speed = (count - self._count) / max(now - self._at, 1e-3)
        self._count, self._at = count, now
        return round(speed, 1)
