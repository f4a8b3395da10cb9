"""A clock that a test sets, from which the scripts take the time."""

from __future__ import annotations

import hashlib
import time
from functools import cache

import pytest
import redis

from tasks.store import scripts

#: Key in which the time is.
KEY = "clock"
SECONDS = 1_000_000


class ScriptClock:
    """The time of the scripts. It begins now, and goes on only when the test says so. Redis itself keeps its own time.

    Keys still expire by the time of Redis, so use long times to live.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, client: redis.Redis) -> None:
        self._redis = client
        self._us = self._first_us = time.time_ns() // 1000
        real = scripts.get

        @cache
        def get(name: str) -> scripts.Script:
            text = real(name).text.replace("redis.call('TIME')", f"redis.call('HMGET', '{KEY}', 's', 'us')")
            return scripts.Script(name, text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())

        monkeypatch.setattr(scripts, "get", get)
        self.advance(0)

    @property
    def now_ms(self) -> int:
        """The time in ms since the Unix epoch."""
        return self._us // 1000

    def restart(self) -> None:
        """Go back to where the clock began."""
        self._us = self._first_us
        self.advance(0)

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self._us += round(seconds * SECONDS)
        self._redis.hset(KEY, mapping={"s": self._us // SECONDS, "us": self._us % SECONDS})
