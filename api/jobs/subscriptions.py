"""Bells: one pub/sub connection a process, and any number of asyncio waiters behind it.

Every job has bells of its own, for whoever wants to know of its changes. Who submits a job and waits for its end alone
needs none of them: the job's record names this process's reply channel, which is subscribed to once and for all.

A bell says that something changed, never what: whoever hears it reads the record. Subscribe, read, then wait, and
nothing is missed: the server's confirmation of a subscription rings too, so the first read that follows it is late
enough, and after a lost connection every bell rings once. `api.jobs.job_watch` covers what may still be lost.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import structlog
from redis.asyncio.client import Redis
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError

from api.background import end
from tasks.store import keys

log = structlog.get_logger(__name__)

#: Wait before the next try to connect, in seconds.
RECONNECT_S = 0.5
#: Silence after which the server is asked whether it is still there, and again this long for its answer, in seconds.
SILENCE_S = 5.0
#: Channels of one SUBSCRIBE; a reconnect with thousands of channels sends several.
CHANNELS_A_COMMAND = 500


class Bell:
    """One waiter's ear on one or several channels. Rings that come while nobody waits are kept, as one."""

    def __init__(self) -> None:
        self._rung = asyncio.Event()
        #: Whether something may have changed since this was last set to False; a nudge alone is no news.
        self.news = False

    def ring(self) -> None:
        """Wake the waiter: something may have changed."""
        self.news = True
        self._rung.set()

    def nudge(self) -> None:
        """Wake the waiter, who knows himself what for."""
        self._rung.set()

    async def wait(self, timeout_s: float) -> bool:
        """Wait for a ring, at most so long; False where none came. A ring is heard once."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._rung.wait()
        except TimeoutError:
            return False
        self._rung.clear()
        return True


class Bells:
    """Subscriptions of this process, counted by channel. Use it on one event loop."""

    def __init__(self, redis: Redis) -> None:
        self._pool = redis.connection_pool
        self._ears: dict[bytes, set[Bell]] = {}
        #: Where the ends of this process's own jobs are told.
        self.reply_channel = keys.reply_channel(secrets.token_hex(8))
        self._reply_name = self.reply_channel.encode()
        #: By job id.
        self._awaiting_reply: dict[bytes, set[Bell]] = {}
        #: Channels of which the server was told, or shall be told, on the present connection.
        self._subscribed: set[bytes] = set()
        self._confirmed: set[bytes] = set()
        #: Channels whose wish may differ from what the server was told.
        self._changed: set[bytes] = set()
        self._work = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @property
    def channels(self) -> int:
        """Channels that somebody listens to."""
        return len(self._ears)

    def start(self) -> None:
        """Connect, and stay connected, in the background."""
        self._task = asyncio.create_task(self._run(), name="bells")

    async def stop(self) -> None:
        """Disconnect."""
        if self._task is not None:
            await end(self._task)

    @contextmanager
    def listen(self, *channels: str) -> Iterator[Bell]:
        """A bell for the channels. It rings once as soon as the subscription holds, and at every later ring."""
        bell = Bell()
        names = [channel.encode() for channel in channels]
        for name in names:
            self._ears.setdefault(name, set()).add(bell)
            if name in self._confirmed:
                bell.ring()
            else:
                self._tell(name)
        try:
            yield bell
        finally:
            for name in names:
                self._ears[name].discard(bell)
                if not self._ears[name]:
                    del self._ears[name]
                    self._tell(name)

    @contextmanager
    def reply(self, job_id: str) -> Iterator[Bell]:
        """A bell that rings at the end of a job which is submitted, within this context, with `reply_channel`; also
        when a ring may have been lost."""
        bell = Bell()
        name = job_id.encode()
        self._awaiting_reply.setdefault(name, set()).add(bell)
        try:
            yield bell
        finally:
            self._awaiting_reply[name].discard(bell)
            if not self._awaiting_reply[name]:
                del self._awaiting_reply[name]

    def ring_all(self) -> None:
        """Wake everybody."""
        for ears in (*self._ears.values(), *self._awaiting_reply.values()):
            _ring(ears)

    def _tell(self, channel: bytes) -> None:
        self._changed.add(channel)
        self._work.set()

    async def _run(self) -> None:
        lost = False
        while True:
            connection: AbstractConnection = self._pool.make_connection()  # type: ignore[no-untyped-call]
            try:
                await connection.connect()  # type: ignore[no-untyped-call]
                # From here on silence is no fault, and sending has no time limit: `_hear` looks after both. A limit
                # would make redis-py send in a way that may swallow a cancellation.
                connection.socket_timeout = None
                if lost:
                    log.info("bells_connected")
                lost = False
                await self._serve(connection)
            except* (RedisError, OSError) as errors:
                if not lost:
                    log.warning("bells_disconnected", error=str(errors.exceptions[0]))
                lost = True
            finally:
                await connection.disconnect(nowait=True)
            await asyncio.sleep(RECONNECT_S)

    async def _serve(self, connection: AbstractConnection) -> None:
        """Keep one connection's subscriptions in step, until it breaks."""
        self._subscribed.clear()
        self._confirmed.clear()
        self._changed = {*self._ears, self._reply_name}
        self._work.set()
        async with asyncio.TaskGroup() as both:
            both.create_task(self._send_subscriptions(connection))
            both.create_task(self._hear(connection))

    async def _send_subscriptions(self, connection: AbstractConnection) -> None:
        while True:
            await self._work.wait()
            self._work.clear()
            changed, self._changed = self._changed, set()
            new = [name for name in changed if self._is_wanted(name) and name not in self._subscribed]
            old = [name for name in changed if not self._is_wanted(name) and name in self._subscribed]
            self._subscribed.update(new)
            self._subscribed.difference_update(old)
            self._confirmed.difference_update(old)
            for command, names in (("UNSUBSCRIBE", old), ("SUBSCRIBE", new)):
                for start in range(0, len(names), CHANNELS_A_COMMAND):
                    part = names[start : start + CHANNELS_A_COMMAND]
                    await connection.send_command(command, *part, check_health=False)

    def _is_wanted(self, name: bytes) -> bool:
        return name in self._ears or name == self._reply_name

    async def _hear(self, connection: AbstractConnection) -> None:
        asked = False
        while True:
            reply = await connection.read_response(timeout=SILENCE_S, disconnect_on_error=False, push_request=True)
            if reply is None:
                if asked:
                    raise RedisConnectionError(f"no answer within {SILENCE_S:g} s")
                asked = True
                await connection.send_command("PING", check_health=False)
                continue
            asked = False
            # The answer to PING is no list, or begins with `pong`.
            if not isinstance(reply, list) or reply[0] not in (b"message", b"subscribe"):
                continue
            kind, channel = reply[0], reply[1]
            if kind == b"subscribe" and channel in self._subscribed:
                self._confirmed.add(channel)
            if channel != self._reply_name:
                _ring(self._ears.get(channel, ()))
            elif kind == b"message":
                _ring(self._awaiting_reply.get(reply[2], ()))
            else:
                # What was told before this was told to nobody.
                for ears in self._awaiting_reply.values():
                    _ring(ears)


def _ring(bells: Iterable[Bell]) -> None:
    for bell in bells:
        bell.ring()
