"""The Celery application of a worker.

celery -A worker.app worker --pool threads --without-gossip --without-mingle
"""

from __future__ import annotations

import logging
import secrets
import socket
import threading
from contextlib import suppress
from typing import Any

from celery import signals
from kombu import Queue

from tasks.celery_app import TASK_NAME, make_app
from tasks.logs import setup_logging
from tasks.settings import settings
from tasks.store import keys
from worker.checkpoints.errors import CheckpointError
from worker.checkpoints.folder import name_of
from worker.transport import bootstep, current
from worker.transport.channel import install_reuse
from worker.transport.consumer import BRPOP_S
from worker.transport.task_request import GenerationRequest, install_revoke

app = make_app(settings())
app.steps["worker"].add(bootstep.EngineStep)
install_revoke()
install_reuse()
app.conf.update(
    worker_pool="threads",
    worker_concurrency=settings().slots,
    worker_consumer="worker.transport.consumer:EagerConsumer",
    # After an outage, too: how many messages there are at once is what the queue's dispatch bounds.
    worker_enable_prefetch_count_reduction=False,
    # kombu's name for the length of one BRPOP.
    broker_transport_options={**app.conf.broker_transport_options, "polling_interval": BRPOP_S},
)


@app.task(name=TASK_NAME, bind=True, Request=GenerationRequest, acks_late=True, ignore_result=True)  # type: ignore[untyped-decorator]
def generate(self: Any, job_id: str) -> None:
    """Run one job. The message carries the id alone; everything else stands in the record."""
    current.require().run(job_id)


@signals.celeryd_init.connect  # type: ignore[untyped-decorator]
def _serve_checkpoint(instance: Any, conf: Any, **_: Any) -> None:
    """Consume the checkpoint's queue, under a name that says what this worker serves."""
    config = settings()
    # A name that cannot be used is the bootstep's to report.
    with suppress(CheckpointError):
        checkpoint = name_of(config.checkpoint)
        conf.task_queues = [Queue(keys.queue(checkpoint), routing_key="")]
        # Celery's own name is the same for all workers of a machine.
        if instance.hostname.startswith("celery@"):
            name = config.worker_name or f"{checkpoint}-{secrets.token_hex(2)}"
            instance.hostname = name if "@" in name else f"{name}@{socket.gethostname()}"


@signals.worker_shutting_down.connect  # type: ignore[untyped-decorator]
def _stop_soon(**_: Any) -> None:
    """In the signal handler. A thread, because this one may be inside the very loop that is to be woken."""
    threading.Thread(target=bootstep.hurry, name="hurry", daemon=True).start()


@signals.setup_logging.connect  # type: ignore[untyped-decorator]
def _own_logging(**_: Any) -> None:
    setup_logging(settings())
    # We say ourselves what becomes of a job.
    for name in ("celery.app.trace", "celery.worker.strategy"):
        logging.getLogger(name).setLevel(logging.WARNING)
