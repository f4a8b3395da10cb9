"""The message that `submit` pushes is the one that Celery itself would push."""

from __future__ import annotations

import json
from typing import Any

import pytest
import redis
from kombu import Queue

from tasks.celery_app import TASK_NAME, make_app
from tasks.message import Renderer
from tasks.redis_client.connections import broker_url
from tasks.settings import Settings
from tasks.store import keys
from tests.integration.conftest import QueueWorld

#: Parts that differ between any two messages, or between two processes.
INCIDENTAL = {("properties", "delivery_tag"), ("properties", "reply_to"), ("headers", "origin")}

JOB_ID = "job_01JZ8K6T4V9Q0000000000000A"


def comparable(message: str | bytes) -> dict[str, Any]:
    """The message without its incidental parts, with a decoded body."""
    fields: dict[str, Any] = json.loads(message)
    for part, name in INCIDENTAL:
        fields[part].pop(name)
    return fields


def published_by_celery(url: str, queue: str) -> bytes:
    """The message that `apply_async` pushes to the queue's list."""
    app = make_app(Settings(redis_url=url))

    @app.task(name=TASK_NAME)  # type: ignore[untyped-decorator]
    def task(job_id: str) -> None: ...

    with app.connection_for_write() as connection:
        task.apply_async(
            (JOB_ID,), task_id=JOB_ID, queue=Queue(queue, routing_key=queue), connection=connection, ignore_result=True
        )
    with redis.Redis.from_url(url) as client:
        message: Any = client.rpop(queue)
    assert isinstance(message, bytes)
    return message


@pytest.mark.parametrize("checkpoint", ["tiny", "step_002920", "a b/é"])
def test_the_rendered_message_equals_celerys(redis_url: str, checkpoint: str) -> None:
    ours = Renderer(make_app(Settings(redis_url=redis_url))).render(JOB_ID, keys.queue(checkpoint))
    assert comparable(ours) == comparable(published_by_celery(redis_url, keys.queue(checkpoint)))


@pytest.mark.anyio
async def test_the_pushed_message_is_the_rendered_one_and_has_no_prompt(queue: QueueWorld) -> None:
    queue.register()
    new = queue.new_job()
    await queue.jobs.submit(new)
    pushed: Any = queue.redis.rpop(keys.queue("tiny"))
    assert comparable(pushed) == comparable(Renderer(make_app(queue.settings)).render(new.id, keys.queue("tiny")))
    assert new.generation.prompt not in pushed.decode()


def test_two_messages_have_different_delivery_tags(redis_url: str) -> None:
    renderer = Renderer(make_app(Settings(redis_url=redis_url)))
    first, second = (json.loads(renderer.render(JOB_ID, keys.queue("tiny"))) for _ in range(2))
    assert first["properties"]["delivery_tag"] != second["properties"]["delivery_tag"]


def test_kombu_reaches_another_database_of_a_socket(redis_url: str) -> None:
    url = redis_url.replace("db=0", "db=3")
    assert broker_url(url).endswith("?virtual_host=3")
    assert published_by_celery(url, "generate.tiny")
