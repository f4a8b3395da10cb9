"""The health probe of a worker: `python -m worker.health`."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tasks.settings import settings
from worker import health


@pytest.fixture(autouse=True)
def touched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """A health file of 20 s ago."""
    path = tmp_path / "alive"
    health.touch(path)
    os.utime(path, (time.time() - 20, time.time() - 20))
    monkeypatch.setenv("CELERIAC_HEALTH_FILE", str(path))
    settings.cache_clear()
    yield path
    settings.cache_clear()


def test_an_old_file_is_unhealthy(capsys: pytest.CaptureFixture[str]) -> None:
    assert health.main() == 1
    assert "20 s ago" in capsys.readouterr().err


def test_rare_heartbeats_make_an_older_file_healthy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"HEARTBEAT_S": "10", "LEASE_S": "30", "WORKER_TTL_S": "30", "REAP_GAP_S": "20"}.items():
        monkeypatch.setenv(f"CELERIAC_{name}", value)
    assert health.main() == 0


def test_an_invalid_setting_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("CELERIAC_HEARTBEAT_S", "10")
    assert health.main() == 1
    error = capsys.readouterr().err
    assert error.startswith("CELERIAC_LEASE_S (5, the default) must be at least 3 times CELERIAC_HEARTBEAT_S (10)")
    assert error.count("\n") == 1


def test_an_empty_health_file_is_unset(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("CELERIAC_HEALTH_FILE", "")
    assert health.main() == 1
    assert "CELERIAC_HEALTH_FILE is not set" in capsys.readouterr().err
