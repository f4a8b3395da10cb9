"""Keeps an engine process alive: restarts one that died, and gives up where that does not help."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

import structlog

from worker.engine.request import SequenceRequest
from worker.engine.update import Update
from worker.engine_process.client import EngineClient, EngineDiedError, EngineLoadError, describe_exit
from worker.engine_process.messages import Ready, Report, Start
from worker.engine_process.restart_budget import WITHIN_S, Deaths
from worker.jobs.running_job import RunningJob

log = structlog.get_logger(__name__)


class EngineSupervisor:
    """One engine at a time. Sequences that a dead engine held are reported through `on_death`, not kept."""

    def __init__(
        self,
        start: Start,
        *,
        load_timeout_s: float,
        on_updates: Callable[[Sequence[Update]], None],
        on_death: Callable[[str | None], None],
        on_give_up: Callable[[str], None],
    ) -> None:
        """All three are called from the reader thread of an engine. `on_death` gets the sequence that the engine ran
        alone, None where the fault may be anybody's."""
        self._start = start
        self._load_timeout_s = load_timeout_s
        self._on_updates = on_updates
        self._on_death = on_death
        self._on_give_up = on_give_up
        self._deaths = Deaths()
        self._changed = threading.Condition()
        self._client: EngineClient | None = None
        #: Whether `_client` has loaded and, for all we know, lives.
        self._available = False
        self._stopping = False
        #: The newest report, None before the first.
        self.report: Report | None = None

    @property
    def pid(self) -> int | None:
        """Process id of the engine, also while it loads; None before there was one."""
        return None if self._client is None else self._client.pid

    def start(self, *, should_stop: Callable[[], bool]) -> Ready:
        """Start the engine and wait until it is loaded. Raises EngineLoadError."""
        client = EngineClient(self._start, on_report=self._took_report, on_death=self._died)
        with self._changed:
            if self._stopping:
                raise EngineLoadError("The worker stops.")
            client.launch()
            self._client = client
        ready = client.wait_ready(timeout_s=self._load_timeout_s, should_stop=should_stop)
        with self._changed:
            self._available = True
            self._changed.notify_all()
        # Only now, so that a death is noticed after what it ends.
        client.listen()
        return ready

    def stop(self) -> None:
        """End the engine, with whatever it holds, and start no other. Whoever waits for one is turned away."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        if self._client is not None:
            self._client.stop()

    def kill(self) -> None:
        """End the engine process, and wait for nothing."""
        if self._client is not None:
            self._client.kill()

    def end_hung(self, silence_s: float) -> bool:
        """Kill an engine that reported nothing for so long; idle ones report twice a second. Whether it hung."""
        with self._changed:
            client = self._client if self._available else None
        if client is None or time.monotonic() - client.last_report_at < silence_s:
            return False
        log.error("engine_hangs", silent_s=silence_s)
        client.kill_hung()
        return True

    def submit(self, request: SequenceRequest) -> None:
        """Hand a sequence to the engine. Raises EngineDiedError, also while a new engine is being loaded."""
        with self._changed:
            client = self._client if self._available else None
        if client is None:
            raise EngineDiedError("The engine is being restarted.")
        client.submit(request)

    def wait_available(self) -> bool:
        """Wait while a dead engine is being replaced. False: the worker stops."""
        with self._changed:
            self._changed.wait_for(lambda: self._available or self._stopping)
            return not self._stopping

    def abort(self, sequence_id: str) -> None:
        """Stop a sequence before the next step."""
        if self._client is not None:
            self._client.abort(sequence_id)

    def _took_report(self, report: Report) -> None:
        if report.alone is not None and (self.report is None or self.report.alone != report.alone):
            log.info("runs_alone", sequence=report.alone)
        self.report = report
        if report.updates:
            self._on_updates(report.updates)

    def _died(self, exit_code: int) -> None:
        """In the dead engine's reader thread, after its last report."""
        with self._changed:
            if self._stopping:
                return
            # First: whoever submits from now on learns of the death, and hands its own job back.
            self._available = False
        culprit = None if self.report is None else self.report.alone
        self.report = None
        log.error("engine_died", exit=describe_exit(exit_code), ran_alone=culprit)
        self._on_death(culprit)
        if self._deaths.add(None if culprit is None else RunningJob.job_of(culprit)):
            self._on_give_up(
                f"The engine process died {self._deaths.count} times within {WITHIN_S:g} s, "
                f"last by {describe_exit(exit_code)}. The jobs are back in the queue."
            )
            return
        try:
            self.start(should_stop=lambda: self._stopping)
        except EngineLoadError as error:
            if not self._stopping:
                self._on_give_up(f"The engine process died and could not be started again: {error}")
            return
        log.info("engine_restarted", pid=self.pid)
