"""The result of one run of the reaper (`lua/reap.lua`), and the arguments with which every process calls it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import structlog

from tasks.record import json_texts
from tasks.settings import Settings
from tasks.store import keys, scripts


@dataclass(frozen=True, slots=True)
class Damage:
    """A record or a key that something else than this program has changed."""

    #: A job id, or the name of a key.
    what: str
    #: Names of the damaged fields of the record; `type` for a key that held another type.
    fields: tuple[str, ...]


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
    #: Jobs whose place in the queue or in the listing did not agree with their records, and was corrected.
    jobs_misplaced: int = 0
    #: Damaged records, whose jobs have failed, and keys with a wrong type, which were deleted. Every script finds them;
    #: each is returned once.
    damage: tuple[Damage, ...] = ()

    def __bool__(self) -> bool:
        return any(asdict(self).values())

    @classmethod
    def from_reply(cls, reply: Sequence[Any]) -> Reaped:
        """The counts in the reply of `reap.lua`."""
        *counts, reports = reply
        return replace(cls(*counts), damage=tuple(map(_damage, reports)))

    def log(self, log: structlog.stdlib.BoundLogger) -> None:
        """Log what was done; nothing if there was nothing to do."""
        for one in self.damage:
            if one.what.startswith(keys.PREFIX) or one.fields == ("type",):
                log.error("key_damaged", key=one.what, what="it held another type, and was deleted")
            else:
                log.error("record_damaged", job_id=one.what, fields=list(one.fields))
        counts = {name: count for name, count in asdict(self).items() if name != "damage"}
        if any(counts.values()):
            log.info("reaped", **counts)


def arguments(settings: Settings) -> tuple[int, ...]:
    """The arguments of `reap.lua`."""
    times_s = (settings.reap_every_s, settings.reap_gap_s, settings.lease_s, settings.dispatch_timeout_s)
    return tuple(map(scripts.ms, times_s))


def _damage(report: bytes) -> Damage:
    try:
        what, fields = json_texts(report.decode())
    except (ValueError, TypeError, RecursionError):
        return Damage(keys.DAMAGED, ("type",))
    return Damage(what, tuple(fields.split()))
