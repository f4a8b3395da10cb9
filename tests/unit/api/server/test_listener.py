"""The sockets that the API listens on."""

from __future__ import annotations

import asyncio
import errno
import socket

import pytest

from api.server.listener import Listener, open_sockets


def test_all_addresses_of_a_name_have_the_same_port() -> None:
    sockets = open_sockets("localhost", 0)
    try:
        ports = {one.getsockname()[1] for one in sockets}
        assert len(ports) == 1
        assert ports != {0}
        assert len({one.family for one in sockets}) == len(sockets)
    finally:
        for one in sockets:
            one.close()


def test_a_port_in_use_is_an_error() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(OSError, match="in use") as caught:
            open_sockets("127.0.0.1", taken.getsockname()[1])
    assert caught.value.errno == errno.EADDRINUSE


def test_connections_send_at_once_and_notice_lost_clients() -> None:
    """With Nagle's algorithm, each answer of two parts would wait for the client's delayed acknowledgement: 40 ms."""

    async def options() -> list[int]:
        accepted: asyncio.Future[asyncio.BaseTransport] = asyncio.get_running_loop().create_future()

        class Recording(asyncio.Protocol):
            def connection_made(self, transport: asyncio.BaseTransport) -> None:
                accepted.set_result(transport)

        (listening,) = open_sockets("127.0.0.1", 0)
        listener = Listener(listening, Recording, b"")
        listener.start()
        _, writer = await asyncio.open_connection("127.0.0.1", listening.getsockname()[1])
        transport = await accepted
        found = transport.get_extra_info("socket")
        wanted = [(socket.IPPROTO_TCP, socket.TCP_NODELAY), (socket.SOL_SOCKET, socket.SO_KEEPALIVE)]
        values = [int(found.getsockopt(*option)) for option in wanted]
        transport.close()
        writer.close()
        await writer.wait_closed()
        listener.close()
        return values

    assert all(asyncio.run(options()))
