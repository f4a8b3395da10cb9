"""Fans out Redis pub/sub notifications: one connection per process serves any number of asyncio waiters.

Each job has channels of its own, for clients that watch its changes. A request that submits a job and only waits for
its end does not subscribe to them: the job's record names this process's reply channel, which is subscribed once.

A notification says that something may have changed, not what. A waiter that reads the record after each notification
misses no change: the first notification is the server's confirmation of the subscription, so the first read happens
after the subscription took effect; and after a lost connection every waiter is notified once. `api.jobs.job_watch`
covers notifications that are lost in other ways.
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

#: Wait before the next attempt to connect, in seconds.
RECONNECT_S = 0.5
#: After this time without a message the server gets a PING, and then has this time to answer, in seconds.
SILENCE_S = 5.0
#: Channels in one SUBSCRIBE command. A reconnect with thousands of channels sends several commands.
CHANNELS_PER_COMMAND = 500


class Subscription:
    """One waiter's subscription to one or more channels. Notifications that come between two waits count as one."""

    def __init__(self) -> None:
        self._woken = asyncio.Event()
        #: Whether a notification came since the waiter last set this to False. `wake` does not set it.
        self.changed = False

    def notify(self) -> None:
        """Wake the waiter because data may have changed."""
        self.changed = True
        self._woken.set()

    def wake(self) -> None:
        """Wake the waiter without marking new data."""
        self._woken.set()

    async def wait(self, timeout_s: float) -> bool:
        """Wait until woken, at most `timeout_s` seconds. False: the time is over."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._woken.wait()
        except TimeoutError:
            return False
        self._woken.clear()
        return True


class Subscriptions:
    """All subscriptions of this process, on one connection. Use it on one event loop."""

    def __init__(self, redis: Redis) -> None:
        self._pool = redis.connection_pool
        self._by_channel: dict[bytes, set[Subscription]] = {}
        #: The channel that receives the ids of this process's own jobs when they end.
        self.reply_channel = keys.reply_channel(secrets.token_hex(8))
        self._reply_name = self.reply_channel.encode()
        self._by_job_id: dict[bytes, set[Subscription]] = {}
        #: Channels for which the present connection has sent, or is about to send, SUBSCRIBE.
        self._requested: set[bytes] = set()
        #: Channels whose subscription the server has confirmed.
        self._confirmed: set[bytes] = set()
        #: Channels whose first waiter came or last waiter left since the last commands were sent.
        self._dirty: set[bytes] = set()
        self._has_dirty = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @property
    def channels(self) -> int:
        """Number of channels that have a waiter, without the reply channel."""
        return len(self._by_channel)

    def start(self) -> None:
        """Connect and stay connected, in a background task."""
        self._task = asyncio.create_task(self._run(), name="subscriptions")

    async def stop(self) -> None:
        """Disconnect."""
        if self._task is not None:
            await end(self._task)

    @contextmanager
    def subscribe(self, *channels: str) -> Iterator[Subscription]:
        """A subscription to `channels`. It is notified when the server confirms it, and at each later message."""
        subscription = Subscription()
        names = [channel.encode() for channel in channels]
        for name in names:
            self._by_channel.setdefault(name, set()).add(subscription)
            if name in self._confirmed:
                subscription.notify()
            else:
                self._mark_dirty(name)
        try:
            yield subscription
        finally:
            for name in names:
                self._by_channel[name].discard(subscription)
                if not self._by_channel[name]:
                    del self._by_channel[name]
                    self._mark_dirty(name)

    @contextmanager
    def subscribe_to_end(self, job_id: str) -> Iterator[Subscription]:
        """A subscription to the end of a job that is submitted, within this context, with `reply_channel`.

        It is also notified when a message may have been lost.
        """
        subscription = Subscription()
        name = job_id.encode()
        self._by_job_id.setdefault(name, set()).add(subscription)
        try:
            yield subscription
        finally:
            self._by_job_id[name].discard(subscription)
            if not self._by_job_id[name]:
                del self._by_job_id[name]

    def notify_all(self) -> None:
        """Notify every waiter."""
        for subscriptions in (*self._by_channel.values(), *self._by_job_id.values()):
            _notify(subscriptions)

    def _mark_dirty(self, channel: bytes) -> None:
        self._dirty.add(channel)
        self._has_dirty.set()

    async def _run(self) -> None:
        lost = False
        while True:
            connection: AbstractConnection = self._pool.make_connection()  # type: ignore[no-untyped-call]
            try:
                await connection.connect()  # type: ignore[no-untyped-call]
                # From here on silence is normal; `_receive` detects a server that is gone. A time limit on the socket
                # would also make redis-py send in a way that may swallow a cancellation.
                connection.socket_timeout = None
                if lost:
                    log.info("subscriptions_connected")
                lost = False
                await self._serve(connection)
            except* (RedisError, OSError) as errors:
                if not lost:
                    log.warning("subscriptions_disconnected", error=str(errors.exceptions[0]))
                lost = True
            finally:
                await connection.disconnect(nowait=True)
            await asyncio.sleep(RECONNECT_S)

    async def _serve(self, connection: AbstractConnection) -> None:
        """Send subscriptions and receive messages until the connection fails."""
        self._requested.clear()
        self._confirmed.clear()
        self._dirty = {*self._by_channel, self._reply_name}
        self._has_dirty.set()
        async with asyncio.TaskGroup() as both:
            both.create_task(self._send_subscriptions(connection))
            both.create_task(self._receive(connection))

    async def _send_subscriptions(self, connection: AbstractConnection) -> None:
        while True:
            await self._has_dirty.wait()
            self._has_dirty.clear()
            dirty, self._dirty = self._dirty, set()
            new = [name for name in dirty if self._is_wanted(name) and name not in self._requested]
            old = [name for name in dirty if not self._is_wanted(name) and name in self._requested]
            self._requested.update(new)
            self._requested.difference_update(old)
            self._confirmed.difference_update(old)
            for command, names in (("UNSUBSCRIBE", old), ("SUBSCRIBE", new)):
                for start in range(0, len(names), CHANNELS_PER_COMMAND):
                    part = names[start : start + CHANNELS_PER_COMMAND]
                    await connection.send_command(command, *part, check_health=False)

    def _is_wanted(self, name: bytes) -> bool:
        return name in self._by_channel or name == self._reply_name

    async def _receive(self, connection: AbstractConnection) -> None:
        pinged = False
        while True:
            reply = await connection.read_response(timeout=SILENCE_S, disconnect_on_error=False, push_request=True)
            if reply is None:
                if pinged:
                    raise RedisConnectionError(f"no answer within {SILENCE_S:g} s")
                pinged = True
                await connection.send_command("PING", check_health=False)
                continue
            pinged = False
            # The answer to PING is not a list, or begins with `pong`.
            if not isinstance(reply, list) or reply[0] not in (b"message", b"subscribe"):
                continue
            kind, channel = reply[0], reply[1]
            if kind == b"subscribe" and channel in self._requested:
                self._confirmed.add(channel)
            if channel != self._reply_name:
                _notify(self._by_channel.get(channel, ()))
            elif kind == b"message":
                _notify(self._by_job_id.get(reply[2], ()))
            else:
                # Messages published before the subscription was confirmed are lost, so notify every waiter once.
                for subscriptions in self._by_job_id.values():
                    _notify(subscriptions)


def _notify(subscriptions: Iterable[Subscription]) -> None:
    for subscription in subscriptions:
        subscription.notify()
