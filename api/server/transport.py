"""The transport of one connection: counts what was sent, and can find out whether a client that sent FIN still reads.

TCP does not say whether a client that ended its side of a connection still reads (`shutdown`) or is gone (`close`).
Only bytes that are sent to it show the difference: a client that is gone answers them with a reset. Every answer begins
with the same bytes, so these can be sent before the answer is known.
"""

from __future__ import annotations

import asyncio
import fcntl
import select
import struct
import termios
from typing import Any

#: How every HTTP/1.1 response begins. They are sent one by one.
RESPONSE_START = b"HTTP/1.1 "
_INT = struct.Struct("i")


class ProbingTransport:
    """asyncio's transport, with two more abilities. All other methods are those of asyncio."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        #: How many bytes of RESPONSE_START were sent for the answer that comes next.
        self._ahead = 0
        self._written = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        """Send `data`, without the bytes of it that were sent already."""
        if self._ahead and data:
            assert data.startswith(RESPONSE_START[: self._ahead]), data[:20]
            data = data[self._ahead :]
            self._ahead = 0
        self._written += len(data)
        self._transport.write(data)

    def probe(self) -> None:
        """Send the next byte of the answer that comes next. Call this only before the answer begins."""
        if self._ahead < len(RESPONSE_START):
            self._transport.write(RESPONSE_START[self._ahead : self._ahead + 1])
            self._ahead += 1
            self._written += 1

    @property
    def received(self) -> int:
        """Bytes that the client's machine has acknowledged.

        On a system that does not say how many bytes are not, those in the kernel of this machine count as acknowledged.
        """
        try:
            answer = fcntl.ioctl(self._fd(), termios.TIOCOUTQ, bytes(_INT.size))
        except OSError:
            return self._written - self.unsent
        return int(self._written - self.unsent - _INT.unpack(answer)[0])

    @property
    def unsent(self) -> int:
        """Bytes that wait because the client does not read them."""
        return self._transport.get_write_buffer_size()

    def is_reset(self) -> bool:
        """Whether the client has reset the connection, also while nothing is read from it."""
        # Errors are reported without being asked for.
        return self._polled(0, select.POLLERR | select.POLLHUP)

    def has_ended(self) -> bool:
        """Whether the client has sent FIN, also while nothing is read from it. Always False on macOS."""
        fin = getattr(select, "POLLRDHUP", 0)
        return self._polled(fin, fin)

    def _fd(self) -> int:
        fd: int = self._transport.get_extra_info("socket").fileno()
        return fd

    def _polled(self, asked: int, wanted: int) -> bool:
        fd = self._fd()
        if fd < 0:
            return True
        poll = select.poll()
        poll.register(fd, asked)
        return any(events & wanted for _, events in poll.poll(0))
