"""The Celery application of a worker.

celery -A worker.app worker --pool threads --without-gossip --without-mingle
"""

from __future__ import annotations

import os
import sys

# `celery` puts the current folder first on the import path. If it is not the folder of this code, it is searched last:
# it may have a `tasks` or a `torch.py` of another project. The engine process inherits the import path.
sys.path.sort(
    key=lambda entry: os.path.realpath(entry) == os.path.realpath("") != os.path.realpath(__file__ + "/../..")
)

import logging
import secrets
import socket
import threading
import warnings
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from celery import signals
from celery.exceptions import SecurityWarning
from kombu import Exchange, Queue

from tasks.celery_app import TASK_NAME, make_app
from tasks.environment.startup import settings_or_exit
from tasks.logs import setup_logging
from tasks.settings import settings
from tasks.store import keys
from worker.checkpoints.errors import CheckpointError
from worker.checkpoints.folder import find
from worker.transport import current
from worker.transport.bootstep import EngineStep
from worker.transport.celery_options import refuse_other_configuration, refuse_other_queues
from worker.transport.channel import ReusingAMQP
from worker.transport.consumer import BRPOP_S
from worker.transport.control import replace_commands
from worker.transport.shutdown import begin_stop
from worker.transport.task_outcome import EXPECTED, end_task
from worker.transport.task_request import GenerationRequest

refuse_other_configuration()
app = make_app(settings_or_exit())
app.amqp_cls = ReusingAMQP
app.steps["worker"].add(EngineStep)
replace_commands()
app.conf.update(
    worker_pool="threads",
    worker_concurrency=settings().slots,
    worker_consumer="worker.transport.consumer:EagerConsumer",
    # Celery would take fewer messages after an outage. Here the queue's dispatch limits the number of messages.
    worker_enable_prefetch_count_reduction=False,
    # For kombu's Redis transport this is the length of one BRPOP.
    broker_transport_options={**app.conf.broker_transport_options, "polling_interval": BRPOP_S},
)


def run_worker(on_ready: Callable[[], None] = lambda: None) -> int:
    """Run a worker until a signal stops it. Returns the exit code. `on_ready` is called when it takes jobs."""
    # Celery warns a worker of the root user about pickled messages. Ours are JSON and carry an id.
    warnings.filterwarnings("ignore", category=SecurityWarning)
    worker = app.Worker(loglevel=settings().log_level.upper(), quiet=True, without_gossip=True, without_mingle=True)
    signals.worker_ready.connect(lambda **_: on_ready(), weak=False)
    worker.start()
    exit_code: int = worker.exitcode
    return exit_code


@app.task(  # type: ignore[untyped-decorator]
    name=TASK_NAME, bind=True, Request=GenerationRequest, acks_late=True, ignore_result=True, throws=EXPECTED
)
def generate(self: Any, job_id: str) -> None:
    """Run one job. The message carries only its id; everything else is in the record."""
    end_task(current.require().run(job_id))


@signals.celeryd_init.connect  # type: ignore[untyped-decorator]
def _serve_checkpoint(instance: Any, conf: Any, options: Any, **_: Any) -> None:
    """Consume the checkpoint's queue. Name the worker after the checkpoint, unless it was given a name."""
    refuse_other_queues(options)
    config = settings()
    # The bootstep reports a checkpoint that cannot be used.
    with suppress(CheckpointError):
        checkpoint = find(config.checkpoint, config.checkpoint_dir, name=config.checkpoint_name).name
        # Celery's tools show the exchange and the routing key of a queue, which are `celery` by default.
        queue = keys.queue(checkpoint)
        conf.task_queues = [Queue(queue, Exchange(queue), routing_key=queue)]
        # Celery's default name is the same for all workers of a machine.
        if instance.hostname.startswith("celery@"):
            name = config.worker_name or f"{checkpoint}-{secrets.token_hex(2)}"
            instance.hostname = name if "@" in name else f"{name}@{socket.gethostname()}"


@signals.worker_shutting_down.connect  # type: ignore[untyped-decorator]
def _begin_stop(**_: Any) -> None:
    """Begin the stop in a thread: this is a signal handler, and may have interrupted the loop that must be woken."""
    threading.Thread(target=begin_stop, name="begin-stop", daemon=True).start()


@signals.setup_logging.connect  # type: ignore[untyped-decorator]
def _set_up_logging(**_: Any) -> None:
    setup_logging(settings())
    # The worker logs the end of each job itself.
    for name in ("celery.app.trace", "celery.worker.strategy"):
        logging.getLogger(name).setLevel(logging.WARNING)
