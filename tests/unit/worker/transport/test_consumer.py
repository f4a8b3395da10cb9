"""When a worker sends Celery's events."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from celery.worker.consumer import Consumer

from worker.transport.consumer import EVENTS_EVERY_S, EagerConsumer


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
