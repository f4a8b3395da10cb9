"""Variables that look like settings and are none: which are reported, and how."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from tasks.environment.unknown_variables import OTHER_VARIABLES, REPORTED, report_unknown_variables, unknown_variables
from tasks.settings import Settings
from tasks.time_rules import variable

ROOT = Path(__file__).parents[4]


@pytest.mark.parametrize("name", Settings.model_fields)
def test_each_setting_is_known_and_is_the_nearest_name_of_its_misspellings(name: str) -> None:
    right = variable(name)
    assert not unknown_variables({right: "x", right.lower(): "x"})
    misspelt = (f"{right}X", right[:-1], right.replace("CELERIAC", "CELERAIC"), right.replace("CELERIAC", "CELERIC"))
    # CELERIAC_CHECKPOINTS without its last letter is a setting, too.
    for wrong in set(misspelt) - set(map(variable, Settings.model_fields)):
        assert unknown_variables({wrong: "x"}) == {wrong: right}


@pytest.mark.parametrize(
    ("wrong", "near"),
    [
        ("CELERIAC_SLOT", "CELERIAC_SLOTS"),
        ("CELERIAC_REDIS_ULR", "CELERIAC_REDIS_URL"),
        ("CELERIAC_LEASE", "CELERIAC_LEASE_S"),
        ("CELERIAC_HEARTBEAT_MS", "CELERIAC_HEARTBEAT_S"),
        ("CELERIAC_ULR", "CELERIAC_URL"),
        ("celeriac_slot", "CELERIAC_SLOTS"),
        ("CELERAIC_SLOTS", "CELERIAC_SLOTS"),
        ("CELERIAC_ZZZ", None),
    ],
)
def test_a_misspelt_name(wrong: str, near: str | None) -> None:
    assert unknown_variables({wrong: "x", "PATH": "/bin"}) == {wrong: near}


@pytest.mark.parametrize("name", [*sorted(OTHER_VARIABLES), "CELERY_DEVICE", "SLOTS", "CELERIAC"])
def test_other_names_are_not_reported(name: str) -> None:
    assert not unknown_variables({name: "x"})


def test_the_variables_of_compose_are_known() -> None:
    text = "".join((ROOT / name).read_text() for name in ("docker-compose.yml", ".env.example", "Dockerfile"))
    names = re.findall(r"\bCELERIAC_[A-Z_]+", text)
    assert "CELERIAC_CHECKPOINTS" in names
    assert not unknown_variables(dict.fromkeys(names, "x"))


def test_an_empty_variable_is_not_reported() -> None:
    assert not unknown_variables({"CELERIAC_SLOT": ""})


def test_the_variables_of_a_kubernetes_service_are_known() -> None:
    service = {
        "CELERIAC_API_SERVICE_HOST": "10.0.0.1",
        "CELERIAC_API_SERVICE_PORT": "8000",
        "CELERIAC_API_SERVICE_PORT_HTTP": "8000",
        "CELERIAC_API_PORT": "tcp://10.0.0.1:8000",
        "CELERIAC_API_PORT_8000_TCP": "tcp://10.0.0.1:8000",
        "CELERIAC_API_PORT_8000_TCP_ADDR": "10.0.0.1",
    }
    assert not unknown_variables(service)
    assert unknown_variables({"CELERIAC_REDIS_PORT": "6379"})


def test_one_line_without_values_once(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(os, "environ", {"CELERIAC_SLOT": "secret", "CELERIAC_ZZZ": "secret"})
    report_unknown_variables()
    report_unknown_variables()
    assert capsys.readouterr().err == (
        "Warning: Celeriac has no setting CELERIAC_SLOT (did you mean CELERIAC_SLOTS?), CELERIAC_ZZZ\n"
    )
    # A child has one more wrong name.
    os.environ["CELERIAC_LEASE"] = "secret"
    report_unknown_variables()
    assert capsys.readouterr().err == (
        "Warning: Celeriac has no setting CELERIAC_LEASE (did you mean CELERIAC_LEASE_S?)\n"
    )
    assert "secret" not in os.environ[REPORTED]


def test_a_name_with_odd_characters(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(os, "environ", {"CELERIAC_,\n\x1b[1m": "x"})
    report_unknown_variables()
    report_unknown_variables()
    assert capsys.readouterr().err == "Warning: Celeriac has no setting 'CELERIAC_,\\n\\x1b[1m'\n"
