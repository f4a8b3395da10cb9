"""The environment that `celeriac serve` gives its processes."""

from __future__ import annotations

from pathlib import Path

import pytest

from celeriac.launcher.plan import Options, _environment
from tasks.settings import Settings

OPTIONS = Options(
    checkpoint="x",
    host="127.0.0.1",
    port=8000,
    device="cpu",
    weights="exact",
    reload=False,
    workers=1,
    flower=False,
    flower_port=5555,
    data_dir=Path("data"),
)


@pytest.mark.parametrize("log_format", ["auto", "console", "json"])
def test_the_processes_log_events_however_the_launcher_prints_them(log_format: str) -> None:
    settings = Settings.model_validate({"log_format": log_format})
    assert _environment(OPTIONS, settings, "x", "redis://host")["CELERIAC_LOG_FORMAT"] == "json"
