"""Settings that are empty, and times that contradict one another."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from bench.chaos.system import SETTINGS as CHAOS
from tasks.errors import ConfigurationError
from tasks.settings import Settings, settings
from tasks.time_rules import TIME_RULES, TimeRule, variable
from tests.faults.conftest import QUICK


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An environment without settings."""
    for name in Settings.model_fields:
        monkeypatch.delenv(variable(name), raising=False)
    settings.cache_clear()
    yield
    settings.cache_clear()


@pytest.mark.parametrize("name", Settings.model_fields)
def test_an_empty_variable_counts_as_unset(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    unset = Settings()
    monkeypatch.setenv(variable(name), "")
    assert Settings() == unset
    assert name not in Settings().model_fields_set


def problems(**values: float | str) -> str:
    """The message about these settings, read from the environment."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in values.items():
            patch.setenv(variable(name), str(value))
        with pytest.raises(ConfigurationError) as error:
            settings()
    return str(error.value)


@pytest.mark.parametrize("rule", TIME_RULES, ids=lambda rule: f"{rule.longer}-{rule.shorter}")
def test_times_that_contradict_each_other_are_refused(rule: TimeRule) -> None:
    shorter_s = 0.1 + getattr(Settings(), rule.longer) / rule.factor
    longer_s = getattr(Settings(), rule.longer)
    message = problems(**{rule.shorter: shorter_s, rule.longer: longer_s})
    assert (
        f"{variable(rule.longer)} ({longer_s:g}) must be at least "
        f"{f'{rule.factor} times' if rule.factor > 1 else 'as long as'} {variable(rule.shorter)} ({shorter_s:.10g}), "
        f"because {rule.reason}: set {variable(rule.longer)} to {rule.factor * shorter_s:.10g} or more, or lower "
        f"{variable(rule.shorter)}"
    ) in message


@pytest.mark.parametrize("rule", TIME_RULES, ids=lambda rule: f"{rule.longer}-{rule.shorter}")
def test_the_least_time_is_accepted(rule: TimeRule) -> None:
    """Also where the product is rounded: 3 * 0.1 is more than 0.3."""
    others = dict.fromkeys(("heartbeat_s", "reap_every_s", "sync_wait_s"), 0.001)
    times_s = {**others, "lease_s": 0.6, "worker_ttl_s": 0.6, "max_wait_s": 0.3, "reap_gap_s": 0.2}
    Settings.model_validate({**times_s, rule.longer: 0.3, rule.shorter: {1: 0.3, 2: 0.15, 3: 0.1}[rule.factor]})


def test_the_message_says_which_time_is_a_default() -> None:
    assert "CELERIAC_LEASE_S (5, the default) must be at least 3 times CELERIAC_HEARTBEAT_S (2)," in problems(
        heartbeat_s=2
    )


def test_all_contradictions_are_in_one_message() -> None:
    message = problems(lease_s=1, sync_wait_s=20, max_wait_s=10)
    assert "CELERIAC_HEARTBEAT_S" in message
    assert "CELERIAC_MAX_WAIT_S (10) must be at least as long as CELERIAC_SYNC_WAIT_S (20)" in message
    assert "\n" not in message


def test_the_longest_wait_may_be_below_the_default_of_a_plain_call() -> None:
    assert Settings(max_wait_s=1).sync_wait_s == 120


def test_an_invalid_value_is_named_but_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CELERIAC_SLOTS", "secret-1")
    monkeypatch.setenv("CELERIAC_DEVICE", "secret-2")
    with pytest.raises(ConfigurationError, match=r"CELERIAC_SLOTS: .*; CELERIAC_DEVICE: ") as error:
        settings()
    assert "secret" not in str(error.value)
    monkeypatch.setenv("CELERIAC_ALLOWED_HOSTS", "secret-3")
    with pytest.raises(ConfigurationError, match="allowed_hosts") as error:
        settings()
    assert "secret" not in str(error.value)


@pytest.mark.parametrize("short", [QUICK, {name.lower(): value for name, value in CHAOS.items()}])
def test_short_times_in_the_same_proportions_are_accepted(short: dict[str, str]) -> None:
    assert Settings.model_validate(short).lease_s == float(short["lease_s"])


#: The settings that are numbers, and those that are times.
NUMBERS = [name for name, field in Settings.model_fields.items() if field.annotation in (int, float, float | None)]
TIMES = [name for name in NUMBERS if name.endswith("_s")]


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("value", ["inf", "-inf", "nan", "Infinity", "1e999", "-1"])
def test_a_number_that_is_not_finite_or_negative_is_refused(name: str, value: str) -> None:
    assert variable(name) in problems(**{name: value})


@pytest.mark.parametrize("name", TIMES)
@pytest.mark.parametrize("value", ["0", "1e-9", "1e12"])
def test_a_time_that_no_timer_can_measure_is_refused(name: str, value: str) -> None:
    assert variable(name) in problems(**{name: value})
