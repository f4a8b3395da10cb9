"""The worker of one checkpoint: engine, publisher, lease keeper and job runner, put together."""

from __future__ import annotations

import os
import secrets
import socket
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial

import structlog
from redis import Redis
from redis.exceptions import RedisError

from tasks.errors import CardConflictError, SchemaError, WorkerReplacedError
from tasks.redis_client.connections import make_sync, redacted
from tasks.redis_client.errors import describe
from tasks.settings import Settings
from tasks.store import keys
from tasks.store.redis_check import check_redis
from tasks.store.worker_store import Ended, WorkerStore
from tasks.worker_info import WorkerInfo, WorkerState
from worker.checkpoints.folder import CheckpointFolder
from worker.checkpoints.tokenizers.background import BackgroundLoad, LoadedTokenizer
from worker.engine.kv.budget import KvBudget
from worker.engine_process.client import EngineLoadError
from worker.engine_process.messages import Ready, Update, start_message
from worker.engine_process.supervisor import EngineSupervisor
from worker.health import HealthFile
from worker.jobs.announcer import Announcer
from worker.jobs.channel_listener import ChannelListener
from worker.jobs.job_runner import JobRunner
from worker.jobs.kv_admission import KvAdmission
from worker.jobs.lease_keeper import LeaseKeeper
from worker.jobs.publisher import Publisher
from worker.jobs.retry import RetryStoppedError, retry_while_redis_is_away
from worker.jobs.stuck_jobs import STUCK_AFTER_S, StuckJobs

log = structlog.get_logger(__name__)

#: Wait between two calls while Redis is away at the start, in seconds.
RETRY_S = 1.0
#: How long a drain waits for the task bodies, in seconds.
DRAIN_S = 1.0


@dataclass(frozen=True, kw_only=True)
class TransportHooks:
    """What the service needs of Celery's side of the process. All of them may be called from any thread."""

    #: Stops the worker, which cannot continue, with a message for people.
    give_up: Callable[[str], None]
    #: Whether the worker is being stopped.
    should_stop: Callable[[], bool]
    #: Whether the consumer has not looked for messages for a while.
    stalled: Callable[[], bool]
    #: The jobs of the messages that were taken and are not acknowledged.
    held_jobs: Callable[[], Collection[str]]
    #: Makes the consumer look again at once whether it may take messages.
    wake: Callable[[], None]


class _EngineEvents:
    """Passes what the engine does to the publisher, and its changes to the service once there is one."""

    def __init__(self, publisher: Publisher) -> None:
        self._publisher = publisher
        #: Called when the engine has crashed, and when a new one has loaded.
        self.on_change: Callable[[], None] = lambda: None

    def engine_decoded(self, updates: Sequence[Update], /) -> None:
        self._publisher.engine_decoded(updates)

    def engine_crashed(self, suspect: str | None, /, *, out_of_memory: bool) -> None:
        self.on_change()
        self._publisher.engine_crashed(suspect, out_of_memory=out_of_memory)

    def engine_restarted(self) -> None:
        self.on_change()


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
        tokenizer: LoadedTokenizer,
        starting: WorkerInfo,
        hooks: TransportHooks,
    ) -> None:
        """`engine` has loaded its checkpoint: `ready` is its first message. `starting` was announced before."""
        self._settings = settings
        self._redis = redis
        self._store = store
        self._engine = engine
        self._publisher = publisher
        self._ready = ready
        self._published_tokenizer = tokenizer.blob
        self._hooks = hooks
        #: Monotonic time since which the worker takes no more messages; None before.
        self._draining_since: float | None = None
        self._info = replace(starting, device=ready.device, digest=ready.card.digest, kv_tokens=ready.kv_tokens)
        self._speed = _Speedometer()
        self._runner = JobRunner(
            store=store,
            engine=engine,
            publisher=publisher,
            admission=KvAdmission(KvBudget(ready.kv_tokens)),
            tokenizer=tokenizer.tokenizer,
            card=ready.card,
            worker=self._info.name,
            incarnation=self._info.incarnation,
        )
        self._lease_keeper = LeaseKeeper(
            store,
            publisher,
            self._runner,
            info=self._current_info,
            before_heartbeat=self._check_process,
            keep_tokenizer=self._keep_tokenizer,
            on_conflict=hooks.give_up,
            period_s=settings.heartbeat_s,
        )
        self._cancel_listener = ChannelListener(
            redis, keys.worker_channel(self._info.name), publisher.cancel_requested, name="cancel"
        )
        self._health_file = None if settings.health_file is None else HealthFile(settings.health_file)
        self._stuck_jobs = StuckJobs(hooks.held_jobs, self._runner.job_ids)

    @classmethod
    def start(
        cls, settings: Settings, folder: CheckpointFolder, name: str, hooks: TransportHooks
    ) -> WorkerService | None:
        """Load the checkpoint, register the worker, and start the threads. None if the worker is being stopped.

        Raises EngineLoadError, CheckpointError, CardConflictError, RedisUnusableError and SchemaError, each with a
        message for people. If no service is returned, nothing is left running.
        """
        redis = make_sync(settings)
        store = WorkerStore(redis, settings)
        engine = EngineSupervisor(
            start_message(settings, folder), load_timeout_s=settings.load_timeout_s, on_give_up=hooks.give_up
        )
        publisher = Publisher(store, abort=engine.abort, flush_interval_s=settings.flush_interval_ms / 1000)
        events = _EngineEvents(publisher)
        starting = _starting(settings, folder, name)
        retry = partial(_retry, settings, hooks.should_stop)
        with ExitStack() as undo:
            undo.callback(redis.close)
            undo.callback(engine.stop)
            undo.callback(_deregister, store, starting)
            try:
                retry(partial(check_redis, settings))
                retry(store.check_schema)
                log.info("loading", checkpoint=folder.name, path=str(folder.path))
                tokenizer = BackgroundLoad(folder)
                with Announcer(store, starting, period_s=settings.heartbeat_s), tokenizer:
                    ready = engine.start(events, should_stop=hooks.should_stop)
                service = cls(
                    settings,
                    redis=redis,
                    store=store,
                    engine=engine,
                    publisher=publisher,
                    ready=ready,
                    tokenizer=_checked(tokenizer.result(ready.tokenizer_digest), folder, ready),
                    starting=starting,
                    hooks=hooks,
                )
                # From the registration on, the API says that it is ready. The log must not say it later.
                service._log_loaded()
                service._register(retry)
                service._publish_tokenizer()
            except (RetryStoppedError, EngineLoadError):
                if hooks.should_stop():
                    return None
                raise
            undo.pop_all()
        events.on_change = service._engine_changed
        service._start_threads()
        return service

    @property
    def takes_messages(self) -> bool:
        """Whether the consumer may take messages: an engine is there, and the worker does not stop."""
        return self._engine.available and self._draining_since is None

    @property
    def draining_s(self) -> float:
        """For how long the worker has taken no more messages, in seconds, because it stops or retires."""
        return 0.0 if self._draining_since is None else time.monotonic() - self._draining_since

    def run(self, job_id: str) -> Ended | None:
        """The task body. Returns how the job has ended; None if it has not, or if this is not known."""
        self._runner.run(job_id)
        if self._runner.closed:
            # The job was released, as a rule. A worker that stops must not wait for a Redis that is away.
            return None
        try:
            return self._store.ended(job_id)
        except RedisError:
            return None

    def cancel(self, job_id: str) -> None:
        """Cancel a job, running or waiting. Celery's own cancel commands call this."""
        self._store.cancel(job_id)

    def drain(self) -> None:
        """Release every running job with its tokens, and end everything that `start` began.

        Celery has stopped taking messages before.
        """
        log.info("draining", running=len(self._publisher.running()))
        self._close_gate()
        self._runner.close()
        self._lease_keeper.stop()
        # Before jobs are released, or they would be dispatched to this worker again.
        self._send_last_heartbeat()
        self._publisher.stop()
        self._engine.stop()
        self._wait_for_task_bodies()
        self._cancel_listener.stop()
        _deregister(self._store, self._info)
        self._redis.close()

    def begin_drain(self) -> None:
        """Take no more messages, and show that in the registry. `drain` follows when Celery has stopped."""
        self._close_gate()
        self._lease_keeper.beat_now()

    def retire(self) -> None:
        """Take no more messages, requeue the jobs that are not claimed, and end the engine when no job runs here."""
        self.begin_drain()
        self._runner.finish_running()
        self._engine.stop()

    def kill_engine(self) -> None:
        """Kill the engine process without waiting for its end."""
        self._engine.kill()

    def _close_gate(self) -> None:
        if self._draining_since is None:
            self._draining_since = time.monotonic()

    def _register(self, retry: Callable[[Callable[[], None]], None]) -> None:
        """Register the worker. Raises CardConflictError if other workers serve other weights and do not end.

        A worker that was killed counts as live until its heartbeats are too old. So a conflict may end by itself.
        """
        deadline = time.monotonic() + self._settings.worker_ttl_s + RETRY_S
        while True:
            try:
                return retry(lambda: self._store.register(self._current_info(), self._ready.card))
            except CardConflictError as error:
                if time.monotonic() >= deadline or self._hooks.should_stop():
                    raise
                log.warning("waits_for_name", reason=str(error))
                time.sleep(RETRY_S)

    def _publish_tokenizer(self) -> None:
        """Publish the tokenizer before the first job. If Redis refuses it, the lease keeper tries again."""
        try:
            self._keep_tokenizer()
        except RedisError as error:
            log.warning("tokenizer_not_published", error=describe(error))

    def _keep_tokenizer(self) -> None:
        self._store.keep_tokenizer(self._ready.card.digest, self._published_tokenizer)

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
            compute=card.compute,
            load_s=round(self._ready.load_s, 2),
            slots=self._info.slots,
            kv_tokens=self._ready.kv_tokens,
        )

    def _engine_changed(self) -> None:
        """Show in the registry that the engine has crashed or that a new one has loaded, and tell the consumer."""
        self._lease_keeper.beat_now()
        self._hooks.wake()

    def _send_last_heartbeat(self) -> None:
        try:
            self._store.heartbeat(self._current_info())
        except (RedisError, CardConflictError, SchemaError, WorkerReplacedError) as error:
            log.warning("heartbeat_failed", error=str(error))

    def _wait_for_task_bodies(self) -> None:
        if not self._runner.wait_idle(DRAIN_S):
            log.error("task_bodies_still_run", after_s=DRAIN_S)

    def _check_process(self) -> None:
        """Kill an engine that makes no progress, and stop a worker whose threads run nothing. Else touch the file."""
        if self._engine.kill_if_unresponsive(self._settings.engine_silence_s):
            return
        if self._draining_since is None and (stuck := self._stuck_jobs.find()):
            self._hooks.give_up(
                f"For {STUCK_AFTER_S:g} s the worker held messages that none of its threads ran: {', '.join(stuck)}. "
                "The jobs go back to the queue."
            )
            return
        if self._health_file is not None:
            self._health_file.touch()

    def _current_info(self) -> WorkerInfo:
        report = self._engine.report
        running = len(self._publisher.running())
        return replace(
            self._info,
            state=self._state(running),
            running=running,
            kv_tokens_free=self._info.kv_tokens if report is None else report.kv_tokens_free,
            tokens_per_s=self._speed.per_second(self._publisher.tokens_decoded),
        )

    def _state(self, running: int) -> WorkerState:
        if self._draining_since is not None:
            return WorkerState.DRAINING
        if not self._engine.available:
            return WorkerState.STARTING
        if self._hooks.stalled():
            return WorkerState.STALLED
        return WorkerState.BUSY if running else WorkerState.IDLE


def _starting(settings: Settings, folder: CheckpointFolder, name: str) -> WorkerInfo:
    """A worker that loads its checkpoint, as it is registered before more is known."""
    return WorkerInfo(
        name=name,
        incarnation=secrets.token_hex(8),
        checkpoint=folder.name,
        device=settings.device,
        slots=settings.slots,
        pid=os.getpid(),
        host=socket.gethostname(),
    )


def _checked(tokenizer: LoadedTokenizer, folder: CheckpointFolder, ready: Ready) -> LoadedTokenizer:
    """The tokenizer, if it is the one that the engine has loaded. Raises EngineLoadError if it was replaced since."""
    if tokenizer.digest != ready.tokenizer_digest:
        raise EngineLoadError(
            f"The tokenizer of {folder.name} was replaced while the checkpoint was loaded. Start the worker again."
        )
    return tokenizer


def _deregister(store: WorkerStore, info: WorkerInfo) -> None:
    try:
        store.deregister(info)
    except RedisError as error:
        log.warning("deregister_failed", error=str(error))


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
