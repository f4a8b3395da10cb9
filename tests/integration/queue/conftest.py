"""Fixtures for switching workers."""

from __future__ import annotations

import pytest

from tasks.store.switching_store import SwitchingStore
from tests.helpers.script_clock import ScriptClock
from tests.integration.conftest import QueueWorld


@pytest.fixture
def store(queue: QueueWorld) -> SwitchingStore:
    return SwitchingStore(queue.redis, queue.settings)


@pytest.fixture
def clock(queue: QueueWorld, monkeypatch: pytest.MonkeyPatch) -> ScriptClock:
    return ScriptClock(monkeypatch, queue.redis)


@pytest.fixture
def lasting(queue: QueueWorld, clock: ScriptClock) -> QueueWorld:
    """The queue with a clock of the test, on which no worker and no lease expires."""
    return queue.tuned(worker_ttl_s=86_400.0, lease_s=86_400.0, reap_every_s=0.0, reap_gap_s=86_400.0)


@pytest.fixture
def lasting_store(lasting: QueueWorld) -> SwitchingStore:
    return SwitchingStore(lasting.redis, lasting.settings)
