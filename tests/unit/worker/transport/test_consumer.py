"""When a worker sends Celery's events."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from celery.worker.consumer import Consumer
from redis.exceptions import ConnectionError, ResponseError

from worker.transport.consumer import EVENTS_EVERY_S, EagerConsumer, _unless_closed


class Loop:
    """A hub that makes the calls of `call_soon` at once, and keeps those of `call_later`."""

    def __init__(self) -> None:
        self.later: list[tuple[float, Callable[[], None]]] = []

    def call_soon(self, callback: Callable[..., Any], *args: Any) -> None:
        callback(*args)

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> None:
        self.later.append((delay_s, callback))


@pytest.fixture
def consumer(monkeypatch: pytest.MonkeyPatch) -> EagerConsumer:
    """A consumer without a connection, at time `now`."""
    consumer = EagerConsumer.__new__(EagerConsumer)
    consumer.hub, consumer.now, consumer.published = Loop(), 1000.0, 0
    monkeypatch.setattr("worker.transport.consumer.time", SimpleNamespace(monotonic=lambda: consumer.now))

    def publish(self: Any) -> None:
        self.published += 1

    monkeypatch.setattr(Consumer, "on_send_event_buffered", publish)
    return consumer


def test_events_of_an_interval_are_sent_together(consumer: EagerConsumer) -> None:
    for _ in range(2):
        for _ in range(5):
            consumer.on_send_event_buffered()
        [(delay_s, publish)] = consumer.hub.later
        assert delay_s == EVENTS_EVERY_S
        consumer.hub.later.clear()
        consumer.now += EVENTS_EVERY_S
        publish()
    assert consumer.published == 2


def test_events_are_sent_after_the_pending_calls_were_cancelled(consumer: EagerConsumer) -> None:
    consumer.on_send_event_buffered()
    consumer.hub.later.clear()
    consumer.now += EVENTS_EVERY_S
    consumer.on_send_event_buffered()
    assert len(consumer.hub.later) == 1


class Message:
    """A message whose acknowledgement fails."""

    def __init__(self, error: Exception) -> None:
        self.channel = SimpleNamespace(closed=False, refused=False)
        self._error = error

    def acknowledge(self, logger: Any, errors: tuple[type[Exception], ...]) -> None:
        try:
            raise self._error
        except errors:
            pytest.fail("kombu would log a critical error with a traceback")


def test_a_message_whose_connection_ends_is_not_acknowledged_and_the_main_loop_goes_on() -> None:
    message = Message(ConnectionError("reset by peer"))
    _unless_closed(message.acknowledge, None, (ConnectionError,))
    assert not message.channel.refused


def test_after_a_refused_acknowledgement_no_other_one_is_sent_on_the_connection() -> None:
    message = Message(ResponseError("OOM command not allowed"))
    with pytest.raises(ResponseError):
        _unless_closed(message.acknowledge, None, (ConnectionError,))
    _unless_closed(message.acknowledge, None, (ConnectionError,))
    assert message.channel.refused
