"""Renders the Celery message of a job without a broker, exactly as kombu would push it to the queue's list.

This way `submit` can write the record and its message in one Redis call. A test compares the message with one that
Celery itself publishes.
"""

from __future__ import annotations

from typing import Any

from celery import Celery
from kombu import Connection, Producer
from kombu.transport import virtual
from kombu.utils.json import dumps

from tasks.celery_app import TASK_NAME


class Renderer:
    """Renders messages with Celery's and kombu's own code. Not thread-safe."""

    def __init__(self, app: Celery) -> None:
        self._app = app
        self._channel = Connection(transport=_CapturingTransport).channel()
        self._producer = Producer(self._channel, serializer=app.conf.task_serializer, auto_declare=False)

    def render(self, job_id: str, queue: str) -> str:
        """The message to push to the Redis list of Celery's queue."""
        message = self._app.amqp.as_task_v2(
            job_id, TASK_NAME, args=(job_id,), kwargs={}, create_sent_event=False, ignore_result=True
        )
        self._producer.publish(
            message.body,
            exchange="",
            routing_key=queue,
            headers=message.headers,
            delivery_mode=self._app.conf.task_default_delivery_mode,
            **message.properties,
        )
        return str(dumps(self._channel.captured))


class _CapturingChannel(virtual.Channel):  # type: ignore[misc]
    """Keeps the last message, in the envelope that all virtual transports of kombu use."""

    captured: dict[str, Any]

    def _put(self, queue: str, message: dict[str, Any], **_: Any) -> None:
        self.captured = message


class _CapturingTransport(virtual.Transport):  # type: ignore[misc]
    Channel = _CapturingChannel
