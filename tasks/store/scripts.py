"""The Redis scripts of `tasks/lua`. Each is one atomic call, sent by its hash.

redis-py or the caller sends a script again when its reply was lost. So every script is idempotent: sent twice, it has
the effect of one call.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any, cast

import redis
import redis.asyncio
from redis.exceptions import NoScriptError

from tasks import failures, record
from tasks.job import JobError
from tasks.store import definitions, keys

Argument = str | bytes | int

#: Numbers that the scripts use as `LIMIT`.
LIMITS = {
    # A job fails after this many losses since its last new token, or in all.
    "MAX_LOSSES_IN_A_ROW": 3,
    "MAX_LOSSES": 10,
    # Messages on Celery's list for each worker, in addition to one for each of its slots.
    "SPARE_MESSAGES": 2,
    # Measured durations, for estimates: the weight of the newest one in an average, and how many ratios of real to
    # predicted duration are kept.
    "PACE_WEIGHT": 0.2,
    "ACCURACY_WINDOW": 100,
    # How long they are kept after the last update, in ms: a day.
    "PACE_TTL_MS": 86_400_000,
    # Most expired jobs that one script removes from the listing, and how many times as many the reaper removes.
    "PRUNE_AT_ONCE": 100,
    "PRUNES_PER_REAP": 10,
    # Most jobs of one kind and checkpoint that one run of the reaper checks.
    "REAP_AT_ONCE": 200,
    # Checkpoints for which jobs only wait that one run of the reaper works for.
    "REAP_WAITING_AT_ONCE": 50,
    # Jobs of a backlog, drawn at random, that one run of the reaper checks.
    "SAMPLE_AT_ONCE": 50,
    # How long the set of a worker's running jobs is kept after its last claim, in ms: a day.
    "WORKER_JOBS_TTL_MS": 86_400_000,
    # How often the reaper counts the slots of one checkpoint anew, in ms.
    "RECOUNT_EVERY_MS": 60_000,
    # Keys of Redis, and jobs of the listing, that one run of the reaper checks for sets that do not agree with records.
    "PLACE_AT_ONCE": 30,
    # How long a job is kept whose record does not say it, in ms: a day.
    "DAMAGED_TTL_MS": 86_400_000,
    # Most reports of damage that are kept until a reaper logs them.
    "DAMAGE_REPORTS": 1000,
    # Largest values of a record.
    "MOST_TIME_MS": record.MOST_TIME_MS,
    "MOST_COUNT": record.MOST_COUNT,
    # Entries that `list` reads at once, and most entries that it reads for one page.
    "LIST_CHUNK": 100,
    "LIST_SCAN": 1000,
    # A page ends when the prompts and texts of its jobs have this many bytes together: 1 MiB.
    "LIST_BYTES": 1 << 20,
    # How long a switching worker prefers a checkpoint that it has loaded: this many times the duration of a load, and
    # at most so many ms.
    "SWITCH_BONUS_LOADS": 4,
    "MOST_SWITCH_BONUS_MS": 60_000,
    # Duration of a load before the first one was measured: a fixed part in ms, and the bytes for each further ms.
    "LOAD_MS": 3000,
    "LOAD_BYTES_PER_MS": 200_000,
    # Checkpoints with waiting jobs that one decision reads at once, and how many that can be loaded it considers.
    "SWITCH_CHUNK": 50,
    "SWITCH_CANDIDATES": 100,
    # Offers, drawn at random, that one heartbeat of a switching worker checks.
    "SAMPLE_OFFERS": 20,
    # How long the card of a checkpoint is kept that is no longer offered, in ms: a day if its worker is gone, and a
    # minute if it was retracted. Until then no front end accepts a job for it.
    "OFFER_TTL_MS": 86_400_000,
    "RETRACTED_TTL_MS": 60_000,
    # The part of `maxmemory` into which no new job is accepted. Heartbeats, messages and connections need some of it.
    "MEMORY_HEADROOM": 0.1,
}

#: Files of `lua/prelude`. Their definitions are put before the scripts that use them. Each uses only what is defined
#: above it.
PRELUDE = ("record", "memory", "log", "workers", "damage", "queue", "lifecycle", "switching", "agreement")


def ms(seconds: float) -> int:
    """A duration as the scripts take it, in whole ms."""
    return round(seconds * 1000)


def repair_arguments(job_id: str = "", fields: Sequence[str] = (), *, force: bool = False) -> tuple[Argument, ...]:
    """The arguments of `repair.lua`. Without a job it only mends the keys of the queue.

    `fields` are the damaged fields that the caller found. With `force` the job fails even if no damage is found.
    """
    return (job_id, int(force), *fields)


@dataclass(frozen=True, slots=True)
class Script:
    """One script, including what it uses of the prelude."""

    name: str
    text: str
    #: SHA-1 of the text, by which Redis finds the script.
    sha: str

    def call(self, client: redis.Redis, *arguments: Argument) -> Any:
        """Run the script and return its raw reply. Raises redis.exceptions.RedisError."""
        try:
            return client.evalsha(self.sha, 0, *cast(tuple[str, ...], arguments))
        except NoScriptError:
            # A restarted Redis does not have the script. EVAL also loads it for later calls.
            return client.eval(self.text, 0, *cast(tuple[str, ...], arguments))

    async def acall(self, client: redis.asyncio.Redis, *arguments: Argument) -> Any:
        """`call` for an asynchronous client."""
        try:
            return await client.evalsha(self.sha, 0, *cast(tuple[str, ...], arguments))
        except NoScriptError:
            return await client.eval(self.text, 0, *cast(tuple[str, ...], arguments))


@cache
def get(name: str) -> Script:
    """The script in `lua/<name>.lua`, with what it uses of the prelude."""
    script = (files("tasks") / "lua" / f"{name}.lua").read_text("utf-8")
    text = definitions.with_definitions(script, prelude())
    return Script(name, text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())


@cache
def prelude() -> tuple[definitions.Definition, ...]:
    """All that scripts may use: the generated tables and the files of `lua/prelude`, in order."""
    folder = files("tasks") / "lua" / "prelude"
    texts = [generated_tables(), *((folder / f"{part}.lua").read_text("utf-8") for part in PRELUDE)]
    return tuple(definition for text in texts for definition in definitions.split(text))


@cache
def generated_tables() -> str:
    """The Lua tables `KEY`, `LIMIT` and `FAILURE` (as JSON), generated so that nothing is spelled twice."""
    lines = ["local KEY, FAILURE = {}, {}"]
    for name, value in vars(keys).items():
        if inspect.isfunction(value):
            before, _, after = value("\0").partition("\0")
            lines.append(f"function KEY.{name}(of) return '{before}' .. of .. '{after}' end")
        elif name.isupper() and isinstance(value, str):
            lines.append(f"KEY.{name} = '{value}'")
    for name, value in vars(failures).items():
        if isinstance(value, JobError):
            lines.append(f"FAILURE.{name} = [==[{value.to_json()}]==]")
    lines.append("local LIMIT = {" + ", ".join(f"{name} = {value}" for name, value in LIMITS.items()) + "}")
    return "\n".join(lines)
