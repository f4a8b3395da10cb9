"""The environment that `celeriac serve` gives its processes."""

from __future__ import annotations

import sys
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


@pytest.mark.parametrize(("no_color", "coloured"), [(None, True), ("", True), ("1", False)])
def test_an_empty_no_color_counts_as_unset(
    monkeypatch: pytest.MonkeyPatch, no_color: str | None, coloured: bool
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.delenv("NO_COLOR", raising=False)
    if no_color is not None:
        monkeypatch.setenv("NO_COLOR", no_color)
    assert ("FORCE_COLOR" in _environment(OPTIONS, Settings(), "x", "redis://host")) == coloured
