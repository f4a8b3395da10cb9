"""The gate of the consumer, and the watch that notices a consumer that does not look for messages."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from worker.transport import consumption as module
from worker.transport.consumption import STALLED_AFTER_S, Consumption, GatedQoS


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Consumption:
    """The state of the consumer, with a clock that stands still."""
    watched = Consumption(clock=lambda: 0.0)
    monkeypatch.setattr(module, "consumption", watched)
    return watched


def qos(*, queues: tuple[str, ...] = ("generate.tiny",), in_poll: object = None, prefetch: int = 2) -> Any:
    channel: Any = SimpleNamespace(active_queues=set(queues), _in_poll=in_poll, do_restore=False)
    return GatedQoS(channel, prefetch_count=prefetch)


def test_an_open_gate_leaves_the_decision_to_kombu(watched: Consumption) -> None:
    assert qos().can_consume()


def test_a_closed_gate_takes_nothing_but_reads_the_reply_to_what_it_asked_before(watched: Consumption) -> None:
    watched.is_open = lambda: False
    assert not qos().can_consume()
    assert qos(in_poll=object()).can_consume()


def test_a_consumer_that_stops_looking_is_stalled() -> None:
    now = 0.0
    watched = Consumption(clock=lambda: now)
    now = STALLED_AFTER_S + 1
    assert not watched.stalled, "the checkpoint is still being loaded"
    watched.looked()
    assert not watched.stalled
    now *= 2
    assert watched.stalled
    watched.looked()
    assert not watched.stalled


def test_only_the_channel_of_the_queue_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    watched = Consumption(clock=lambda: now)
    monkeypatch.setattr(module, "consumption", watched)
    watched.looked()
    now = STALLED_AFTER_S + 1
    qos(queues=()).can_consume()
    assert watched.stalled
    qos().can_consume()
    assert not watched.stalled
