"""The result of one run of the reaper (`lua/reap.lua`), and the arguments with which every process calls it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from tasks.settings import Settings
from tasks.store import scripts


@dataclass(frozen=True, slots=True)
class Reaped:
    """Counts of one call. All are 0 if there was nothing to do, or if another process had just run the reaper."""

    #: Running jobs that were reclaimed because their lease had expired.
    leases_expired: int
    #: Messages of dispatched jobs that were pushed again.
    messages_pushed: int
    #: Workers that left the registry because they sent no heartbeat.
    workers_gone: int
    #: Jobs without a record that were removed.
    orphans_removed: int
    #: Leases that were extended because Redis had been away.
    leases_extended: int
    #: Waiting jobs that ended at a time limit.
    jobs_overdue: int

    def __bool__(self) -> bool:
        return any(asdict(self).values())

    @classmethod
    def from_reply(cls, reply: Sequence[int]) -> Reaped:
        """The counts in the reply of `reap.lua`."""
        return cls(*reply)


def arguments(settings: Settings) -> tuple[int, ...]:
    """The arguments of `reap.lua`."""
    times_s = (settings.reap_every_s, settings.reap_gap_s, settings.lease_s, settings.dispatch_timeout_s)
    return tuple(map(scripts.ms, times_s))
