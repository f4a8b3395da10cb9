"""The asyncio connection pool of one process. While Redis does not answer, all its callers share one attempt.

A server that hangs accepts connections and commands, and never replies. Each command then takes its whole time limit.
Without this pool, callers that wait for a free connection would pay that limit one group after the other.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from redis.asyncio.connection import (
    AbstractConnection,
    BlockingConnectionPool,
    Connection,
    SSLConnection,
    UnixDomainSocketConnection,
)
from redis.exceptions import ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from tasks.redis_client.errors import is_demotion
from tasks.shared_call import SharedCall


class _Reporting(AbstractConnection):
    """Tells the pool whether Redis answers, and when Redis says that it is a replica now."""

    def __init__(self, *, report: Callable[[bool], None], report_demotion: Callable[[], None], **options: Any) -> None:
        super().__init__(**options)
        self._report = report
        self._report_demotion = report_demotion

    async def connect(self) -> None:
        """Connect unless connected."""
        with self._reported():
            await super().connect()  # type: ignore[no-untyped-call]

    async def send_packed_command(self, *args: Any, **options: Any) -> None:
        """Send a command."""
        with self._reported():
            await super().send_packed_command(*args, **options)

    async def read_response(self, *args: Any, **options: Any) -> Any:
        """Read a reply."""
        with self._reported():
            reply = await super().read_response(*args, **options)
        self._report(True)
        return reply

    @contextmanager
    def _reported(self) -> Iterator[None]:
        try:
            yield
        except RedisTimeoutError:
            self._report(False)
            raise
        except ResponseError as error:
            self._report(True)
            if is_demotion(error):
                self._report_demotion()
            raise


class _ReportingTcp(_Reporting, Connection):
    pass


class _ReportingTls(_Reporting, SSLConnection):
    pass


class _ReportingUnix(_Reporting, UnixDomainSocketConnection):
    pass


_REPORTING: dict[type[AbstractConnection], type[_Reporting]] = {
    Connection: _ReportingTcp,
    SSLConnection: _ReportingTls,
    UnixDomainSocketConnection: _ReportingUnix,
}


class SharedOutagePool(BlockingConnectionPool):
    """When one command is not answered in time, all callers that wait for a connection fail with it.

    From then until Redis answers again, callers join one attempt to reach it, and fail or continue with that.
    """

    def __init__(
        self, *, connection_class: type[AbstractConnection] = Connection, answer_within_s: float, **options: Any
    ) -> None:
        """`answer_within_s` is the longest time that an attempt to reach Redis takes, in seconds."""
        super().__init__(
            connection_class=_REPORTING[connection_class],
            report=self._report,
            report_demotion=self._report_demotion,
            **options,
        )
        self._answer_within_s = answer_within_s
        #: False from a command without an answer to the next answer.
        self._answers = True
        self._attempt = SharedCall(self._reach)

    def can_get_connection(self) -> bool:
        """Whether a connection is free. Raises redis.exceptions.TimeoutError while Redis does not answer."""
        if not self._answers:
            raise self._no_answer()
        return bool(super().can_get_connection())

    async def get_connection(self, *args: Any, **options: Any) -> Any:
        """A free connection. Raises redis.exceptions.RedisError."""
        if not self._answers:
            await self._attempt()
        return await super().get_connection(*args, **options)  # type: ignore[no-untyped-call]

    async def ensure_connection(self, connection: AbstractConnection) -> None:
        """Connect unless connected. Replaces a connection that leads to a server that was the primary."""
        if connection.should_reconnect():  # type: ignore[no-untyped-call]
            await connection.disconnect(nowait=True)
        await super().ensure_connection(connection)

    async def release(self, connection: AbstractConnection) -> None:
        """Take a connection back. If Redis does not answer, wake the callers that wait for one."""
        await super().release(connection)
        if not self._answers:
            async with self._condition:
                self._condition.notify_all()

    def _report(self, answers: bool) -> None:
        self._answers = answers

    def _report_demotion(self) -> None:
        """All connections lead to the same server. Each is closed before its next command."""
        for connection in (*self._available_connections, *self._in_use_connections):
            connection.mark_for_reconnect()  # type: ignore[no-untyped-call]

    async def _reach(self) -> None:
        """Connect and send PING. Raises redis.exceptions.RedisError."""
        connection: AbstractConnection = self.make_connection()  # type: ignore[no-untyped-call]
        try:
            async with asyncio.timeout(self._answer_within_s):
                await connection.connect()  # type: ignore[no-untyped-call]
                await connection.send_command("PING")
                await connection.read_response()
        except TimeoutError:
            raise self._no_answer() from None
        finally:
            await connection.disconnect(nowait=True)

    def _no_answer(self) -> RedisTimeoutError:
        return RedisTimeoutError(f"Redis has not answered within {self._answer_within_s:g} s")
