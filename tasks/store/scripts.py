"""The Redis scripts of `tasks/lua`: one call each, atomic, sent by their hash.

Every script may be sent twice, by redis-py or by its caller, because a reply was lost: it acts once.
"""

from __future__ import annotations

import hashlib
import inspect
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any, cast

import redis
import redis.asyncio
from redis.exceptions import NoScriptError

from tasks import failures
from tasks.job import JobError
from tasks.store import keys

Argument = str | bytes | int

#: Numbers that the scripts know as `LIMIT`.
LIMITS = {
    # A job ends when its worker was lost this often since its last new token, or in all.
    "MAX_LOSSES_IN_A_ROW": 3,
    "MAX_LOSSES": 10,
    # Messages beyond its slots that lie ready for each worker.
    "SPARE_MESSAGES": 2,
    # Durations that the estimates go by: weight of the newest, and how many are kept to tell their accuracy.
    "PACE_WEIGHT": 0.2,
    "ACCURACY_WINDOW": 100,
    # How long they are kept without a new one, in ms: a day.
    "PACE_TTL_MS": 86_400_000,
    # Expired entries that one script takes out of the listing.
    "TIDY_AT_ONCE": 100,
    # Jobs of one kind and checkpoint that one run of the reaper looks at.
    "REAP_AT_ONCE": 200,
    # Entries that `list` reads at once, and looks at for one page.
    "LIST_CHUNK": 100,
    "LIST_SCAN": 1000,
}


#: Files of `lua/prelude` that stand in front of every script, each of which uses what is above it.
PRELUDE = ("record", "log", "queue", "lifecycle")


@dataclass(frozen=True, slots=True)
class Script:
    """One script with everything that stands in front of it."""

    name: str
    text: str
    #: What Redis knows it by.
    sha: str

    def call(self, client: redis.Redis, *arguments: Argument) -> Any:
        """Its raw reply. Raises redis.exceptions.RedisError."""
        try:
            return client.evalsha(self.sha, 0, *cast(tuple[str, ...], arguments))
        except NoScriptError:
            # A Redis that was restarted has forgotten it; EVAL teaches it again.
            return client.eval(self.text, 0, *cast(tuple[str, ...], arguments))

    async def acall(self, client: redis.asyncio.Redis, *arguments: Argument) -> Any:
        """`call` for an asynchronous client."""
        try:
            return await client.evalsha(self.sha, 0, *cast(tuple[str, ...], arguments))
        except NoScriptError:
            return await client.eval(self.text, 0, *cast(tuple[str, ...], arguments))


@cache
def get(name: str) -> Script:
    """The script in `lua/<name>.lua`."""
    folder = files("tasks") / "lua"
    parts = [generated_tables(), *((folder / "prelude" / f"{part}.lua").read_text("utf-8") for part in PRELUDE)]
    parts.append((folder / f"{name}.lua").read_text("utf-8"))
    text = "\n".join(parts)
    return Script(name, text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())


@cache
def generated_tables() -> str:
    """Lua tables made from Python, so that nothing is spelled twice: `KEY`, `LIMIT` and `FAILURE` (as JSON)."""
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
