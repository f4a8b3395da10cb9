"""Waits until a server that was just started is ready."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection
from contextlib import suppress

import httpx

#: Interval between two checks, in seconds.
POLL_S = 0.25
#: Longest wait for one response, in seconds.
RESPONSE_S = 5.0


class ReadinessCheck:
    """Polls the server in its own thread, and calls `on_ready` once."""

    def __init__(
        self,
        url: str,
        workers: Collection[Collection[str]],
        on_ready: Callable[[], None],
        *,
        are_switching: bool = False,
    ) -> None:
        """`on_ready` is called when the server is ready and one of `workers` takes jobs for each checkpoint.

        Of workers that load the checkpoints of a folder in turn, one must be there: the server is ready when one offers
        something.

        Names are compared because Redis may still list workers of an earlier run.
        """
        self._url = url
        self._workers = [tuple(f"{name}@" for name in names) for names in workers]
        self._on_ready = on_ready
        self._are_switching = are_switching
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._poll, name="readiness", daemon=True)

    def start(self) -> None:
        """Start polling."""
        self._thread.start()

    def stop(self) -> None:
        """Stop polling."""
        self._stop.set()

    def _poll(self) -> None:
        # Without a proxy from the environment, since the server is on this machine.
        with httpx.Client(base_url=self._url, timeout=RESPONSE_S, trust_env=False) as http:
            while not self._stop.wait(POLL_S):
                with suppress(httpx.TransportError):
                    if self._ready(http):
                        self._on_ready()
                        return

    def _ready(self, http: httpx.Client) -> bool:
        if http.get("/health/ready").status_code != httpx.codes.OK:
            return False
        listed = http.get("/v1/workers")
        if listed.status_code != httpx.codes.OK:
            return False
        workers = listed.json()
        if self._are_switching:
            serving = [worker["name"] for worker in workers["switching"]]
        else:
            serving = [worker["name"] for worker in workers["data"] if worker["state"] in ("idle", "busy")]
        return all(any(name.startswith(of_checkpoint) for name in serving) for of_checkpoint in self._workers)
