"""The Celery side's handle on one engine process: start it, exchange messages with it, detect its crash."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection

import structlog

from worker.engine_process import spare
from worker.engine_process.exit import EngineExit, oom_kills
from worker.engine_process.loading_progress import LoadingProgress
from worker.engine_process.messages import (
    Abort,
    AddRequest,
    FromEngine,
    LoadFailed,
    Loading,
    Ready,
    Report,
    SequenceRequest,
    Start,
    ToEngine,
)
from worker.engine_process.spawned import Spawned, spawn

log = structlog.get_logger(__name__)

#: How often `should_stop` is called while a checkpoint loads, in seconds.
POLL_S = 0.1
#: How long a process that closed its pipe may take to exit, in seconds.
EXIT_GRACE_S = 5.0


class EngineLoadError(Exception):
    """The engine process could not load the checkpoint. The message is for people."""


class EngineCrashedError(Exception):
    """The engine process has crashed, and every sequence in it is lost."""


class EngineClient:
    """One engine process. A new process needs a new client."""

    def __init__(
        self, start: Start, *, on_report: Callable[[Report], None], on_crash: Callable[[EngineExit], None]
    ) -> None:
        """`on_report` and `on_crash` are called from the reader thread."""
        self._start = start
        self._on_report = on_report
        self._on_crash = on_crash
        self._send_lock = threading.Lock()
        self._stopping = threading.Event()
        #: Whether `kill_unresponsive` killed the process.
        self._killed_unresponsive = False
        self._spawned: Spawned | None = None
        self._reader: threading.Thread | None = None
        #: `time.monotonic()` at the last message from the engine, which shows that it makes progress.
        self.last_report_at = time.monotonic()

    @property
    def pid(self) -> int | None:
        """Process id of the engine; None before `launch`."""
        return None if self._spawned is None else self._spawned.process.pid

    def launch(self) -> None:
        """Spawn the process, or take the spare one, and send it what to load.

        Returns at once; `wait_ready` returns the outcome.
        """
        self._spawned = spare.take() or spawn()
        # If the process has already ended, `wait_ready` reports it.
        with suppress(EngineCrashedError):
            self._send(self._start)

    def wait_ready(self, *, timeout_s: float, should_stop: Callable[[], bool]) -> Ready:
        """Wait until the checkpoint is loaded. Call `listen` afterwards.

        Raises EngineLoadError if it cannot be loaded, if that takes longer than `timeout_s`, or when `should_stop`
        returns True; the process has then ended.
        """
        try:
            return self._first_message(timeout_s, should_stop)
        except EngineLoadError:
            self.stop()
            raise

    def listen(self) -> None:
        """Start the reader thread, which calls `on_report` and `on_crash`."""
        self.last_report_at = time.monotonic()
        self._reader = threading.Thread(target=self._read, name="engine-reader", daemon=True)
        self._reader.start()

    def _first_message(self, timeout_s: float, should_stop: Callable[[], bool]) -> Ready:
        connection, process = self._launched()
        deadline = time.monotonic() + timeout_s
        progress = LoadingProgress()
        try:
            first: FromEngine | None = None
            while first is None or isinstance(first, Loading):
                if connection.poll(POLL_S):
                    first = connection.recv()
                    if isinstance(first, Loading):
                        progress.update(first.loaded_bytes, first.total_bytes)
                elif should_stop():
                    raise EngineLoadError("The worker received a signal to stop while it loaded the checkpoint.")
                elif time.monotonic() > deadline:
                    raise EngineLoadError(
                        f"Loading took longer than {timeout_s:g} s. If the disk is slow, or the files are still being "
                        "copied, raise CELERIAC_LOAD_TIMEOUT_S."
                    )
        except (EOFError, OSError):
            ended = self._wait_for_exit(process)
            raise EngineLoadError(f"The engine process ended while it loaded the checkpoint ({ended}).") from None
        if isinstance(first, LoadFailed):
            raise EngineLoadError(first.message)
        if not isinstance(first, Ready):
            raise EngineLoadError(f"The engine process sent {type(first).__name__} before the checkpoint was loaded.")
        return first

    def add_request(self, request: SequenceRequest) -> None:
        """Send a request to the engine. Raises EngineCrashedError."""
        self._send(AddRequest(request))

    def abort(self, sequence_id: str) -> None:
        """Stop a sequence before the next step. Does nothing after a crash, which ended all sequences."""
        try:
            self._send(Abort(sequence_id))
        except EngineCrashedError:
            log.debug("abort_after_crash", sequence=sequence_id)

    def stop(self) -> None:
        """Kill the process and wait for its end. Its state is not needed. `on_crash` is not called."""
        self.kill()
        if self._spawned is None:
            return
        self._spawned.process.wait()
        self._spawned.read_output()
        # The reader thread reads the end of the file and returns. Closing the connection during its read is not safe.
        if self._reader is not None:
            self._reader.join()
            self._spawned.connection.close()

    def kill(self) -> None:
        """Kill the process without waiting for its end. `on_crash` is not called."""
        self._stopping.set()
        if self._spawned is not None:
            self._spawned.process.kill()

    def kill_unresponsive(self) -> None:
        """Kill a process that makes no progress. `on_crash` is called, as for any crash."""
        self._killed_unresponsive = True
        if self._spawned is not None:
            self._spawned.process.kill()

    def _launched(self) -> tuple[Connection, subprocess.Popen[str]]:
        if self._spawned is None:
            raise RuntimeError("the engine process was not launched")
        return self._spawned.connection, self._spawned.process

    def _send(self, message: ToEngine) -> None:
        connection, _ = self._launched()
        try:
            with self._send_lock:
                connection.send(message)
        except OSError as error:
            raise EngineCrashedError("The engine process has ended.") from error

    def _read(self) -> None:
        """Call `on_report` until the pipe ends, then `on_crash`. The body of the reader thread."""
        connection, process = self._launched()
        while True:
            try:
                report: FromEngine = connection.recv()
            except (EOFError, OSError):
                break
            self.last_report_at = time.monotonic()
            if isinstance(report, Report):
                self._on_report(report)
        if not self._stopping.is_set():
            self._on_crash(self._wait_for_exit(process))

    def _wait_for_exit(self, process: subprocess.Popen[str]) -> EngineExit:
        """The exit of a process that closed its pipe. A process that does not exit in time is killed."""
        killed = self._killed_unresponsive
        try:
            code = process.wait(timeout=EXIT_GRACE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            killed, code = True, process.wait()
        assert self._spawned is not None
        self._spawned.read_output()
        before, now = self._spawned.oom_kills, oom_kills()
        return EngineExit(
            code=code, killed_here=killed, oom_kill_seen=before is not None and now is not None and now > before
        )
