"""The health probe of a worker: `python -m worker.health`."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from tasks.settings import settings
from worker import health
from worker.health import HealthFile


@pytest.fixture(autouse=True)
def touched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """A health file of 20 s ago."""
    path = tmp_path / "alive"
    HealthFile(path).touch()
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


def test_a_file_that_cannot_be_written_is_logged_once_and_again_when_it_works(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    file = HealthFile(folder / "alive")
    with structlog.testing.capture_logs() as logs:
        for _ in range(3):
            file.touch()
        folder.mkdir()
        file.touch()
        file.touch()
        (folder / "alive").unlink()
        folder.rmdir()
        file.touch()
    assert [line["event"] for line in logs] == ["health_file_failed", "health_file_written_again", "health_file_failed"]
    assert "No such file" in logs[0]["error"]


def test_the_probe_of_a_missing_file_names_both_reasons(touched: Path, capsys: pytest.CaptureFixture[str]) -> None:
    touched.unlink()
    assert health.main() == 1
    error = capsys.readouterr().err
    assert "has not loaded its checkpoint yet" in error
    assert "health_file_failed" in error


def test_the_probe_of_a_path_that_cannot_be_read_is_one_line(
    monkeypatch: pytest.MonkeyPatch, touched: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CELERIAC_HEALTH_FILE", str(touched / "inside-a-file"))
    assert health.main() == 1
    assert "cannot be read: Not a directory" in capsys.readouterr().err
