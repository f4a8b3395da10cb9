"""Decisions of the launcher: addresses, shares of the machine, restarts."""

from __future__ import annotations

import json
import re
import socket
from pathlib import Path

import pytest

from celeriac.launcher import placement
from celeriac.launcher.console import Console
from celeriac.launcher.ports import PortError, check_port, is_loopback, url_of
from tasks.settings import Settings


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_a_free_port_passes_the_check() -> None:
    check_port("127.0.0.1", free_port())
    check_port("localhost", free_port())


def test_the_error_of_a_port_in_use_names_the_option_that_changes_it() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(PortError, match=rf"Port {port} on 127\.0\.0\.1 is in use.*--flower-port"):
            check_port("127.0.0.1", port, option="--flower-port")
        with pytest.raises(PortError, match="is in use"):
            check_port("0.0.0.0", port)


@pytest.mark.parametrize("host", ["192.0.2.1", "host.invalid", "not a host"])
def test_an_address_of_another_machine_is_an_error(host: str) -> None:
    with pytest.raises(PortError, match=r"is not an address of this machine.*127\.0\.0\.1"):
        check_port(host, free_port())


@pytest.mark.parametrize(
    ("host", "loopback", "url"),
    [
        ("127.0.0.1", True, "http://127.0.0.1:80"),
        ("localhost", True, "http://localhost:80"),
        ("::1", True, "http://[::1]:80"),
        ("0.0.0.0", False, "http://127.0.0.1:80"),
        ("::", False, "http://[::1]:80"),
        ("192.0.2.1", False, "http://192.0.2.1:80"),
    ],
)
def test_loopback_and_url_of_an_address(host: str, loopback: bool, url: str) -> None:
    assert is_loopback(host) is loopback
    assert url_of(host, 80) == url


def test_a_single_worker_gets_the_whole_machine() -> None:
    assert placement.placement(0, 1, device="auto", env={}) == {}


def test_workers_share_the_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placement, "_cpus", lambda: 8)
    assert placement.placement(1, 3, device="cpu", env={}) == {"CELERIAC_THREADS": "2"}
    assert placement.placement(1, 20, device="cpu", env={}) == {"CELERIAC_THREADS": "1"}
    assert placement.placement(1, 3, device="cpu", env={"CELERIAC_THREADS": "5"}) == {}


def test_each_worker_gets_its_own_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for bus in ("0000:01:00.0", "0000:02:00.0"):
        (tmp_path / bus).mkdir()
    monkeypatch.setattr(placement, "NVIDIA_GPUS", tmp_path)
    chosen = [placement.placement(index, 3, device="auto", env={}) for index in range(3)]
    assert chosen == [{"CUDA_VISIBLE_DEVICES": gpu} for gpu in ("0", "1", "0")]
    env = {"CUDA_VISIBLE_DEVICES": "4,5"}
    assert placement.placement(1, 2, device="cuda", env=env) == {"CUDA_VISIBLE_DEVICES": "5"}


def test_the_names_of_children_are_a_column(capfd: pytest.CaptureFixture[str]) -> None:
    console = Console(["api", "worker-1"], Settings(log_format="console"))
    event = {"event": "an_event", "value": 1, "level": "info", "timestamp": "2026-11-27T12:00:00Z"}
    assert console.child_line("api", json.dumps(event)) == "an_event value=1"
    assert console.child_line("worker-1", "no event") == "no event"
    console.error("bad")
    console.flush()
    out, err = capfd.readouterr()
    lines = [re.sub(r"\d\d:\d\d:\d\d", "TIME", line) for line in out.splitlines()]
    assert lines == ["api      | TIME an_event value=1", "worker-1 | TIME no event"]
    assert err == "bad\n"


def test_every_line_is_json_that_names_its_process(capfd: pytest.CaptureFixture[str]) -> None:
    console = Console(["api", "redis"], Settings(log_format="json"))
    console.info("hello", url="http://x")
    console.child_line("api", '{"event": "an_event", "value": 1}')
    console.child_line("redis", "# Warning: no config file")
    console.flush()
    first, *others = map(json.loads, capfd.readouterr().out.splitlines())
    assert (first["process"], first["event"], first["url"]) == ("serve", "hello", "http://x")
    assert [(line["process"], line["event"]) for line in others] == [
        ("api", "an_event"),
        ("redis", "# Warning: no config file"),
    ]
