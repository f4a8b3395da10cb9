"""The Celery application of a worker.

celery -A worker.app worker --pool threads --without-gossip --without-mingle
"""

from __future__ import annotations

from typing import Any

from celery import signals
from kombu import Queue

from tasks import keys
from tasks.celery_app import TASK_NAME, make_app
from tasks.logs import setup_logging
from tasks.settings import settings
from worker import current
from worker.bootstep import EngineStep
from worker.checkpoints.folder import name_of
from worker.request import GenerationRequest, install_revoke

app = make_app(settings())
app.steps["worker"].add(EngineStep)
install_revoke()
if settings().checkpoint is not None:
    app.conf.task_queues = [Queue(keys.queue(name_of(settings().checkpoint)), routing_key="")]
app.conf.update(
    worker_pool="threads",
    worker_concurrency=settings().slots,
    worker_consumer="worker.consumer:EagerConsumer",
)


@app.task(name=TASK_NAME, bind=True, Request=GenerationRequest, acks_late=True, ignore_result=True)  # type: ignore[untyped-decorator]
def generate(self: Any, job_id: str) -> None:
    """Run one job. The message carries the id alone; everything else stands in the record."""
    current.require().run(job_id)


@signals.setup_logging.connect  # type: ignore[untyped-decorator]
def _own_logging(**_: Any) -> None:
    setup_logging(settings())
