"""Log lines about what happens too often for a line each."""

from __future__ import annotations

import pytest
import structlog

from api.server import rare_log
from api.server.rare_log import EVERY_S, RareLog


def test_a_flood_is_one_line_now_and_a_count_later(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(rare_log.time, "monotonic", lambda: now)
    flood = RareLog("flood")
    with structlog.testing.capture_logs() as lines:
        for _ in range(1000):
            flood.warn(limit=5)
        now = EVERY_S
        flood.warn(limit=5)
    assert [(line["event"], line["count"], line["limit"]) for line in lines] == [("flood", 1, 5), ("flood", 1000, 5)]
