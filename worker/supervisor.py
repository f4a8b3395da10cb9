"""Keeps an engine process alive: restarts one that died, and gives up where that does not help."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

import structlog

from worker.engine.request import SequenceRequest
from worker.engine.update import Update
from worker.engine_client import EngineClient, EngineDiedError, EngineLoadError, describe_exit
from worker.messages import Ready, Report, Start

log = structlog.get_logger(__name__)

#: This many deaths within this many seconds, and the worker gives up.
MAX_DEATHS = 3
DEATHS_WITHIN_S = 60.0


class EngineSupervisor:
    """One engine at a time. Sequences that a dead engine held are reported through `on_death`, not kept."""

    def __init__(
        self,
        start: Start,
        *,
        load_timeout_s: float,
        on_updates: Callable[[Sequence[Update]], None],
        on_death: Callable[[], None],
        on_give_up: Callable[[str], None],
    ) -> None:
        self._start = start
        self._load_timeout_s = load_timeout_s
        self._on_updates = on_updates
        self._on_death = on_death
        self._on_give_up = on_give_up
        self._deaths: deque[float] = deque(maxlen=MAX_DEATHS)
        self._stopping = threading.Event()
        self._available = threading.Event()
        self._client: EngineClient | None = None
        #: The newest report, None before the first.
        self.report: Report | None = None

    @property
    def last_report_at(self) -> float:
        """`time.monotonic()` of the engine's last sign of progress; 0 while there is no engine."""
        client = self._client
        return 0.0 if client is None else client.last_report_at

    def start(self, *, should_stop: Callable[[], bool]) -> Ready:
        """Start the engine and wait until it is loaded. Raises EngineLoadError."""
        client = EngineClient(self._start, on_report=self._took_report, on_death=self._died)
        client.launch()
        ready = client.wait_ready(
            timeout_s=self._load_timeout_s, should_stop=lambda: should_stop() or self._stopping.is_set()
        )
        self._client = client
        self._available.set()
        return ready

    def stop(self) -> None:
        """End the engine, with whatever it holds."""
        self._stopping.set()
        if self._client is not None:
            self._client.stop()

    def submit(self, request: SequenceRequest) -> None:
        """Hand a sequence to the engine. Raises EngineDiedError, also while a new engine is being loaded."""
        client = self._client
        if client is None or not self._available.is_set():
            raise EngineDiedError("The engine is being restarted.")
        client.submit(request)

    def wait_available(self) -> bool:
        """Wait while a dead engine is being replaced. False: the worker stops."""
        while not self._available.wait(timeout=0.2):
            if self._stopping.is_set():
                return False
        return not self._stopping.is_set()

    def abort(self, sequence_id: str) -> None:
        """Stop a sequence before the next step."""
        if self._client is not None:
            self._client.abort(sequence_id)

    def _took_report(self, report: Report) -> None:
        self.report = report
        if report.updates:
            self._on_updates(report.updates)

    def _died(self, exit_code: int) -> None:
        """In the dead engine's reader thread."""
        self._available.clear()
        log.error("engine_died", exit=describe_exit(exit_code))
        self._on_death()
        self._deaths.append(time.monotonic())
        if len(self._deaths) == MAX_DEATHS and self._deaths[-1] - self._deaths[0] <= DEATHS_WITHIN_S:
            self._on_give_up(
                f"The engine process died {MAX_DEATHS} times within {DEATHS_WITHIN_S:g} s, "
                f"last by {describe_exit(exit_code)}. The jobs are back in the queue."
            )
            return
        try:
            self.start(should_stop=self._stopping.is_set)
        except EngineLoadError as error:
            if not self._stopping.is_set():
                self._on_give_up(f"The engine process died and could not be started again: {error}")
            return
        log.info("engine_restarted")
