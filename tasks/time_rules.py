"""Settings that are times and depend on one another: which must be longer than which, by how much, and why."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

#: Tolerance of a comparison, so that 0.3 counts as three times 0.1.
_ROUNDING = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class TimeRule:
    """The setting `longer` must be at least `factor` times the setting `shorter`."""

    longer: str
    shorter: str
    factor: int = 1
    #: Why, as the end of a sentence.
    reason: str
    #: Whether the rule only holds if the environment sets `shorter`.
    only_if_set: bool = False


TIME_RULES = (
    TimeRule(
        longer="lease_s",
        shorter="heartbeat_s",
        factor=3,
        reason="a worker renews its leases at each heartbeat, and one heartbeat may fail",
    ),
    TimeRule(
        longer="worker_ttl_s",
        shorter="heartbeat_s",
        factor=3,
        reason="a worker must not count as gone when one heartbeat fails",
    ),
    TimeRule(
        longer="reap_gap_s",
        shorter="heartbeat_s",
        factor=2,
        reason="a worker calls the reaper at each heartbeat, and the time between two calls must not count as an "
        "outage of Redis",
    ),
    TimeRule(
        longer="reap_gap_s",
        shorter="reap_every_s",
        factor=2,
        reason="the API calls the reaper this often, and the time between two calls must not count as an outage of "
        "Redis",
    ),
    TimeRule(
        longer="lease_s",
        shorter="reap_gap_s",
        reason="leases must not expire in an outage of Redis that is too short to count as one",
    ),
    TimeRule(
        longer="max_wait_s",
        shorter="sync_wait_s",
        reason="a call that sets no time must not wait longer than a caller may ask for",
        only_if_set=True,
    ),
)


def broken_rules(times_s: Mapping[str, float], chosen: Collection[str]) -> Iterator[str]:
    """For each rule that is broken, what is wrong and what to do. `chosen`: the settings that do not have defaults."""
    for rule in TIME_RULES:
        longer_s, shorter_s = times_s[rule.longer], times_s[rule.shorter]
        least_s = rule.factor * shorter_s
        if longer_s >= least_s * (1 - _ROUNDING) or (rule.only_if_set and rule.shorter not in chosen):
            continue
        longer, shorter = variable(rule.longer), variable(rule.shorter)
        times = f"{rule.factor} times " if rule.factor > 1 else "as long as "
        yield (
            f"{longer} ({_shown(rule.longer, longer_s, chosen)}) must be at least {times}{shorter} "
            f"({_shown(rule.shorter, shorter_s, chosen)}), because {rule.reason}: set {longer} to {least_s:.10g} or "
            f"more, or lower {shorter}"
        )


def variable(setting: str) -> str:
    """The environment variable of a setting."""
    return f"CELERIAC_{setting.upper()}"


def _shown(setting: str, value: float, chosen: Collection[str]) -> str:
    return f"{value:.10g}" if setting in chosen else f"{value:.10g}, the default"
