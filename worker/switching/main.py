"""A switching worker in this process: what `celeriac worker --checkpoints` runs."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

import structlog

from tasks.errors import RedisUnusableError, SchemaError
from tasks.logs import setup_logging
from tasks.machine_memory import BUDGET_SHARE
from tasks.redis_client.connections import make_sync, redacted
from tasks.settings import Settings
from tasks.store import keys
from tasks.store.redis_check import check_redis
from tasks.store.switching_store import SwitchingStore
from tasks.store.worker_store import WorkerStore
from tasks.switching_info import SwitchingInfo
from worker.health import HealthFile
from worker.jobs.channel_listener import ChannelListener
from worker.jobs.retry import RetryStoppedError, retry_while_redis_is_away
from worker.switching.catalog import Catalog
from worker.switching.child_worker import STOP_S, ChildWorker
from worker.switching.children import ChildEvent, ChildExited, ChildReady, Children, ChildUnloaded
from worker.switching.describer import Describer, DescriberError
from worker.switching.scanner import Scanner
from worker.switching.switching_worker import Stop, SwitchingWorker, Wake

log = structlog.get_logger(__name__)

#: Wait between two calls while Redis is away at the start, in seconds.
RETRY_S = 1.0
#: What the name of a switching worker begins with, if none was chosen. The names of its children leave it out.
PREFIX = "switching-"


def run(settings: Settings, folder: Path) -> int:
    """Serve the checkpoints in a folder until a signal. Returns the exit code."""
    setup_logging(settings)
    folder = Path(os.path.abspath(folder))
    stopping = threading.Event()
    redis = make_sync(settings)
    store = SwitchingStore(redis, settings)
    workers = WorkerStore(redis, settings)
    describer = Describer(settings)
    stop_signals = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)
    for number in stop_signals:
        signal.signal(number, lambda *_: stopping.set())
    retry = partial(
        retry_while_redis_is_away,
        wait_s=RETRY_S,
        wait_for_stop=stopping.wait,
        event="waiting_for_redis",
        url=redacted(settings.redis_url),
    )
    try:
        retry(partial(check_redis, settings))
        retry(store.check_schema)
        facts = describer.start()
    except RetryStoppedError:
        return 0
    except (RedisUnusableError, SchemaError, DescriberError) as error:
        log.error("cannot_serve", reason=str(error))
        return 1
    name = (settings.worker_name or f"{PREFIX}{secrets.token_hex(2)}").partition("@")[0]
    host = socket.gethostname()
    info = SwitchingInfo(
        name=f"{name}@{host}",
        incarnation=secrets.token_hex(8),
        device=facts.kind,
        pid=os.getpid(),
        host=host,
        slots=settings.slots,
        budget_bytes=settings.memory_mb << 20 or round(facts.memory_bytes * BUDGET_SHARE),
    )
    scanner = Scanner(Catalog(folder, describer.describe), describer, lambda: worker.post(Wake()))
    health_file = None if settings.health_file is None else HealthFile(settings.health_file)
    worker = SwitchingWorker(
        store,
        info,
        children=partial(
            Children, _new_process, worker_name=lambda checkpoint: f"{checkpoint}-{name.removeprefix(PREFIX)}@{host}"
        ),
        offers=lambda: scanner.offers,
        on_beat=lambda: None if health_file is None else health_file.touch(),
        reap=lambda: workers.reap().log(log),
        heartbeat_s=settings.heartbeat_s,
        stop_s=STOP_S,
    )
    for number in stop_signals:
        signal.signal(number, lambda *_: worker.post(Stop()))
    if stopping.is_set():
        return 0
    threading.excepthook = lambda failure: _thread_failed(worker, failure)
    log.info("switching", folder=str(folder), device=facts.kind, budget_mb=info.budget_bytes >> 20, worker=info.name)
    listener = ChannelListener(redis, keys.SWITCHING_CHANNEL, lambda _: worker.post(Wake()), name="switching")
    scanner.start()
    listener.start()
    code = worker.run()
    scanner.stop()
    return code


def _new_process(on_event: Callable[[ChildEvent], None]) -> ChildWorker:
    child = ChildWorker(
        on_ready=lambda: on_event(ChildReady(child)),
        on_unloaded=lambda: on_event(ChildUnloaded(child)),
        on_exit=lambda code: on_event(ChildExited(child, code)),
    )
    return child


def _thread_failed(worker: SwitchingWorker, failure: threading.ExceptHookArgs) -> None:
    """Stop the worker after an uncaught exception in a thread: what the thread did is no longer done."""
    name = "a thread" if failure.thread is None else failure.thread.name
    log.error("thread_failed", thread=name, exc_info=failure.exc_value)
    worker.post(Stop(f"{name} failed: {type(failure.exc_value).__name__}"))
