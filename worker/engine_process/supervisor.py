"""Keeps one engine process running: restarts it after a crash, and gives up if that does not help."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Protocol

import structlog

from worker.engine_process.client import EngineClient, EngineCrashedError, EngineLoadError
from worker.engine_process.exit import EngineExit
from worker.engine_process.messages import Ready, Report, SequenceRequest, Start, Update
from worker.engine_process.restart_budget import WITHIN_S, RestartBudget
from worker.engine_process.sequence_id import job_id_of

log = structlog.get_logger(__name__)


class EngineListener(Protocol):
    """Receives what the engine decodes. All methods are called from the reader thread of an engine."""

    def engine_decoded(self, updates: Sequence[Update], /) -> None:
        """The engine decoded tokens, or sequences ended."""

    def engine_crashed(self, suspect: str | None, /, *, out_of_memory: bool) -> None:
        """The engine crashed; every sequence in it is lost. `EngineSupervisor.available` is False already.

        `suspect` is the id of the sequence that ran alone; None if any sequence may be the reason. `out_of_memory`: it
        is known that there was no memory left.
        """

    def engine_restarted(self) -> None:
        """A new engine has replaced the crashed one, and takes requests."""


class EngineChangedError(EngineLoadError):
    """A new engine has loaded something else than the first one: the files or the memory changed in the meantime."""


class EngineSupervisor:
    """Runs one engine at a time. Sequences of a crashed engine are lost; the listener is called for them.

    Call `start` once. The other methods may be called from any thread.
    """

    def __init__(self, start: Start, *, load_timeout_s: float, on_give_up: Callable[[str], None]) -> None:
        """`on_give_up` is called from the reader thread of an engine, with a message for people."""
        self._start = start
        self._load_timeout_s = load_timeout_s
        self._on_give_up = on_give_up
        self._restarts = RestartBudget()
        self._lock = threading.Lock()
        self._client: EngineClient | None = None
        #: Whether `_client` has loaded its checkpoint and has not crashed, as far as this process knows.
        self._available = False
        self._stopping = False
        #: What the first engine loaded. Every later engine must have loaded the same.
        self._loaded: Ready | None = None
        #: The newest report of the current engine; None before the first.
        self.report: Report | None = None

    @property
    def pid(self) -> int | None:
        """Process id of the engine, also while it loads; None before the first engine."""
        return None if self._client is None else self._client.pid

    @property
    def available(self) -> bool:
        """Whether an engine is loaded and takes requests. False while a crashed one is replaced, and after `stop`."""
        with self._lock:
            return self._available and not self._stopping

    def start(self, listener: EngineListener, *, should_stop: Callable[[], bool]) -> Ready:
        """Start the engine and wait until it is loaded. Raises EngineLoadError.

        An engine that replaces a crashed one must have loaded the same: the same digest, so that no text is continued
        with other weights, and as much KV memory. Raises EngineChangedError otherwise.
        """
        client = EngineClient(
            replace(self._start, loaded_before=self._loaded is not None),
            on_report=partial(self._handle_report, listener),
            on_crash=partial(self._handle_crash, listener),
        )
        with self._lock:
            if self._stopping:
                raise EngineLoadError("The worker is stopping.")
            try:
                client.launch()
            except OSError as error:
                raise EngineLoadError(f"The engine process could not be started: {error.strerror}") from error
            self._client = client
        ready = client.wait_ready(timeout_s=self._load_timeout_s, should_stop=should_stop)
        try:
            self._check_same(ready)
        except EngineChangedError:
            client.stop()
            raise
        with self._lock:
            self._available = True
        # Last, so that a crash is handled after `_available` is set, and resets it.
        client.listen()
        return ready

    def stop(self) -> None:
        """End the engine with all its sequences, and start no other."""
        with self._lock:
            self._stopping = True
        if self._client is not None:
            self._client.stop()

    def kill(self) -> None:
        """Kill the engine process without waiting for its end."""
        if self._client is not None:
            self._client.kill()

    def kill_if_unresponsive(self, silence_s: float) -> bool:
        """Kill an engine that has sent no report for `silence_s`; an idle engine reports twice a second.

        Returns whether it was killed. It is then replaced as after any crash.
        """
        with self._lock:
            client = self._client if self._available else None
        if client is None or time.monotonic() - client.last_report_at < silence_s:
            return False
        log.error("engine_unresponsive", silent_s=silence_s)
        client.kill_unresponsive()
        return True

    def add_request(self, request: SequenceRequest) -> None:
        """Send a request to the engine. Raises EngineCrashedError, also while a new engine loads."""
        with self._lock:
            client = self._client if self._available else None
        if client is None:
            raise EngineCrashedError("The engine is being restarted.")
        client.add_request(request)

    def abort(self, sequence_id: str) -> None:
        """Stop a sequence before the next step. Does nothing if no engine holds it."""
        if self._client is not None:
            self._client.abort(sequence_id)

    def _check_same(self, ready: Ready) -> None:
        """Raise EngineChangedError if an engine has loaded something else than the first one."""
        first = self._loaded = self._loaded or ready
        name = first.card.name
        if (ready.card.digest, ready.tokenizer_digest) != (first.card.digest, first.tokenizer_digest):
            raise EngineChangedError(
                f"The files of {name} were replaced while this worker served it (digest {first.card.digest[:12]}, now "
                f"{ready.card.digest[:12]}). The worker stops, so that no text is continued with other weights. Jobs "
                "that were accepted for the old ones continue on a worker that still has them, or fail with "
                "checkpoint_changed. Start the worker again to serve the new files."
            )
        if (ready.device, ready.kv_tokens) != (first.device, first.kv_tokens):
            raise EngineChangedError(
                f"The new engine of {name} has KV memory for {ready.kv_tokens} tokens on {ready.device}, and the first "
                f"one had it for {first.kv_tokens} on {first.device}. Start the worker again to use what there is now."
            )

    def _handle_report(self, listener: EngineListener, report: Report) -> None:
        if report.suspect is not None and (self.report is None or self.report.suspect != report.suspect):
            log.info("runs_alone", sequence=report.suspect)
        self.report = report
        if report.updates:
            listener.engine_decoded(report.updates)

    def _handle_crash(self, listener: EngineListener, ended: EngineExit) -> None:
        """Report a crash and restart the engine. Runs in the crashed engine's reader thread, after its last report."""
        with self._lock:
            if self._stopping:
                return
            # First: a caller of `add_request` then gets EngineCrashedError, and releases its own job.
            self._available = False
        suspect = None if self.report is None else self.report.suspect
        self.report = None
        log.error("engine_crashed", exit=str(ended), suspect=suspect)
        listener.engine_crashed(suspect, out_of_memory=ended.out_of_memory)
        if self._restarts.add(None if suspect is None else job_id_of(suspect)):
            self._on_give_up(
                f"The engine process crashed {self._restarts.count} times within {WITHIN_S:g} s, "
                f"most recently with {ended}. The jobs are back in the queue."
            )
            return
        try:
            self.start(listener, should_stop=lambda: self._stopping)
        except EngineLoadError as error:
            if not self._stopping:
                changed = isinstance(error, EngineChangedError)
                reason = "" if changed else "The engine process crashed and could not be started again: "
                self._on_give_up(f"{reason}{error}")
            return
        log.info("engine_restarted", pid=self.pid)
        listener.engine_restarted()
