"""What one run of the reaper found, and what every process gives it to go by. `lua/reap.lua` says what it does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from tasks.settings import Settings


@dataclass(frozen=True, slots=True)
class Reaped:
    """Counts. All are 0 where there was nothing to do, and where another process has looked just now."""

    #: Jobs that were taken from their worker because their lease was over.
    leases_over: int
    #: Messages that were pushed again.
    messages_pushed: int
    #: Workers that count as gone since.
    workers_gone: int
    #: Jobs whose record is gone.
    jobs_dropped: int
    #: Leases that were extended because Redis had been away.
    leases_extended: int
    #: Jobs whose time was over while they waited.
    jobs_overdue: int

    def __bool__(self) -> bool:
        return any(asdict(self).values())

    @classmethod
    def from_reply(cls, reply: Sequence[int]) -> Reaped:
        """The reply of `reap.lua`."""
        return cls(*reply)


def arguments(settings: Settings) -> tuple[int, ...]:
    """What `reap.lua` takes."""
    times_s = (settings.reap_every_s, settings.reap_gap_s, settings.lease_s, settings.dispatch_timeout_s)
    return tuple(round(seconds * 1000) for seconds in times_s)
