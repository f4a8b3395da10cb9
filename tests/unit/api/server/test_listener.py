"""The sockets that the API listens on."""

from __future__ import annotations

import errno
import socket

import pytest

from api.server.listener import open_sockets


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
