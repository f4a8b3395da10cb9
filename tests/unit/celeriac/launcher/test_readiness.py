"""When a server that was just started counts as ready."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from celeriac.launcher.readiness import ReadinessCheck


@pytest.mark.parametrize(
    ("status", "workers", "ready"),
    [
        (200, [("d4-1@host", "idle")], True),
        (200, [("d4-1@host", "busy")], True),
        # A worker of an earlier run still counts as live, and this server's own one loads.
        (200, [("d4-0@host", "idle"), ("d4-1@host", "starting")], False),
        (200, [("d4-10@host", "idle")], False),
        (503, [("d4-1@host", "starting")], False),
        (200, [], False),
    ],
)
def test_a_server_is_ready_when_its_own_worker_takes_jobs(
    status: int, workers: list[tuple[str, str]], ready: bool
) -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/health/ready":
            return httpx.Response(status, json={})
        data: list[dict[str, Any]] = [{"name": name, "state": state} for name, state in workers]
        return httpx.Response(200, json={"data": data})

    check = ReadinessCheck("http://server", [["d4-1"]], lambda: None)
    with httpx.Client(base_url="http://server", transport=httpx.MockTransport(answer)) as http:
        assert check._ready(http) is ready


@pytest.mark.parametrize(
    ("listed", "ready"),
    [
        ([], False),
        (["a-1@host"], False),
        # A worker of an earlier run has another name.
        (["a-1@host", "b-0@host"], False),
        (["b-2@host", "a-1@host"], True),
        (["b-1@host", "b-2@host", "a-1@host"], True),
    ],
)
def test_each_checkpoint_needs_one_worker(listed: list[str], ready: bool) -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, json={"data": [{"name": name, "state": "idle"} for name in listed]})

    check = ReadinessCheck("http://test", [["a-1"], ["b-1", "b-2"]], lambda: None)
    with httpx.Client(base_url="http://test", transport=httpx.MockTransport(answer)) as http:
        assert check._ready(http) is ready


def test_a_server_that_is_not_ready_is_not_asked_for_its_workers() -> None:
    paths = []

    def answer(request: httpx.Request) -> httpx.Response:
        paths.append(request.url.path)
        return httpx.Response(503)

    check = ReadinessCheck("http://test", [["a"]], lambda: None)
    with httpx.Client(base_url="http://test", transport=httpx.MockTransport(answer)) as http:
        assert check._ready(http) is False
    assert paths == ["/health/ready"]


@pytest.mark.parametrize(
    ("status", "listed", "ready"),
    [(200, ["s-1@host"], True), (503, ["s-1@host"], False), (200, ["s-0@host"], False), (200, [], False)],
)
def test_a_server_of_a_folder_is_ready_when_its_worker_offers_something(
    status: int, listed: list[str], ready: bool
) -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/health/ready":
            return httpx.Response(status, json={})
        return httpx.Response(200, json={"data": [], "switching": [{"name": name} for name in listed]})

    check = ReadinessCheck("http://test", [["s-1", "s-2"]], lambda: None, are_switching=True)
    with httpx.Client(base_url="http://test", transport=httpx.MockTransport(answer)) as http:
        assert check._ready(http) is ready
