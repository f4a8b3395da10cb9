"""`bench.queue` reports what the queue adds to the engine."""

from __future__ import annotations

import pytest

from tests.integration.bench.command import result_of

# It takes long: the processes of each test need most of its time.
pytestmark = pytest.mark.slow


def test_it_reports_added_latency_and_memory() -> None:
    result = result_of("bench.queue", "--measure", "latency", "--threads", "1", timeout_s=240)
    [row] = result["rows"]
    assert row["http_p95_ms"] >= row["http_p50_ms"] > row["engine_p50_ms"] > 0
    assert row["added_p50_ms"] > 0
    assert set(row["memory_mb"]) == {"api", "worker", "engine"}
