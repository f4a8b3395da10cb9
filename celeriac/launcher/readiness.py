"""When a server that was just started serves."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection
from contextlib import suppress

import httpx

#: How often the server is asked, and how long one answer may take, in seconds.
ASK_S = 0.25
ANSWER_S = 5.0


class ReadinessWatch:
    """Asks in a thread of its own, and calls back once."""

    def __init__(self, url: str, workers: Collection[str], on_ready: Callable[[], None]) -> None:
        """A server is ready when it says so and lists one of `workers`: Redis may remember those of an earlier run."""
        self._url = url
        self._workers = tuple(f"{name}@" for name in workers)
        self._on_ready = on_ready
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._ask, name="readiness", daemon=True)

    def start(self) -> None:
        """Begin to ask."""
        self._thread.start()

    def stop(self) -> None:
        """Ask no more."""
        self._stop.set()

    def _ask(self) -> None:
        # Without a proxy of the environment: the server is on this machine.
        with httpx.Client(base_url=self._url, timeout=ANSWER_S, trust_env=False) as http:
            while not self._stop.wait(ASK_S):
                with suppress(httpx.TransportError):
                    if self._ready(http):
                        self._on_ready()
                        return

    def _ready(self, http: httpx.Client) -> bool:
        if http.get("/health/ready").status_code != httpx.codes.OK:
            return False
        listed = http.get("/v1/workers")
        return listed.status_code == httpx.codes.OK and any(
            worker["name"].startswith(self._workers) for worker in listed.json()["data"]
        )
