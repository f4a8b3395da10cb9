"""The Celery side's handle on the engine process: start it, talk to it, notice its death."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path

import structlog

from worker.engine.request import SequenceRequest
from worker.engine_process.messages import Abort, FromEngine, LoadFailed, Ready, Report, Start, Submit, ToEngine

log = structlog.get_logger(__name__)

#: What the engine process runs.
ENGINE_MODULE = "worker.engine_process.main"
#: How often a loading is asked whether it shall go on, in seconds.
POLL_S = 0.1
#: How long a process that closed its pipe may take to end, in seconds.
EXIT_GRACE_S = 5.0


class EngineLoadError(Exception):
    """The engine process could not load the checkpoint. The message is for people."""


class EngineDiedError(Exception):
    """The engine process is gone, and with it every sequence that it held."""


class EngineClient:
    """One engine process. A new process needs a new client."""

    def __init__(self, start: Start, *, on_report: Callable[[Report], None], on_death: Callable[[int], None]) -> None:
        """`on_report` and `on_death` (with the exit code) are called from the reader thread."""
        self._start = start
        self._on_report = on_report
        self._on_death = on_death
        self._send_lock = threading.Lock()
        self._stopping = threading.Event()
        self._connection: Connection | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._reader: threading.Thread | None = None
        #: `time.monotonic()` of the last message from the engine: its sign of progress.
        self.last_report_at = time.monotonic()

    @property
    def pid(self) -> int | None:
        """Process id of the engine, None before `launch`."""
        return None if self._process is None else self._process.pid

    def launch(self) -> None:
        """Spawn the process and tell it what to load. Returns at once; `wait_ready` has the outcome.

        A fresh interpreter and a socket pair instead of `multiprocessing`: nothing of Celery's main module is imported
        again in the child, and the child sees the end of the file when this process ends, however it ends.
        """
        ours, theirs = socket.socketpair()
        # A terminal sends Ctrl-C to the whole group, and service managers SIGTERM: this process alone decides when the
        # engine ends. What is blocked here is blocked in the child from its first moment.
        unblocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-m", ENGINE_MODULE, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                cwd=Path(__file__).parents[2],
            )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, unblocked)
            theirs.close()
        self._connection = Connection(ours.detach())
        # A process that is gone already shows in `wait_ready`.
        with suppress(EngineDiedError):
            self._send(self._start)

    def wait_ready(self, *, timeout_s: float, should_stop: Callable[[], bool]) -> Ready:
        """Wait until the checkpoint is loaded. Call `listen` then.

        Raises EngineLoadError where it cannot be loaded in time, or when `should_stop` answers yes; no process is left.
        """
        try:
            return self._first_message(timeout_s, should_stop)
        except EngineLoadError:
            self.stop()
            raise

    def listen(self) -> None:
        """Begin to call `on_report` and `on_death`."""
        self.last_report_at = time.monotonic()
        self._reader = threading.Thread(target=self._read, name="engine-reader", daemon=True)
        self._reader.start()

    def _first_message(self, timeout_s: float, should_stop: Callable[[], bool]) -> Ready:
        connection, process = self._launched()
        deadline = time.monotonic() + timeout_s
        try:
            while not connection.poll(POLL_S):
                if should_stop():
                    raise EngineLoadError("The worker was told to stop while it loaded the checkpoint.")
                if time.monotonic() > deadline:
                    raise EngineLoadError(
                        f"Loading took longer than {timeout_s:g} s. If the disk is slow, raise CELERIAC_LOAD_TIMEOUT_S."
                    )
            first: FromEngine = connection.recv()
        except (EOFError, OSError):
            raise EngineLoadError(
                f"The engine process ended while it loaded the checkpoint ({describe_exit(self._reap(process))})."
            ) from None
        if isinstance(first, LoadFailed):
            raise EngineLoadError(first.message)
        if not isinstance(first, Ready):
            raise EngineLoadError(f"The engine process spoke out of turn: {type(first).__name__}.")
        return first

    def submit(self, request: SequenceRequest) -> None:
        """Hand a sequence to the engine. Raises EngineDiedError."""
        self._send(Submit(request))

    def abort(self, sequence_id: str) -> None:
        """Stop a sequence before the next step. A dead engine holds no sequence: nothing to do then."""
        try:
            self._send(Abort(sequence_id))
        except EngineDiedError:
            log.debug("abort_after_death", job_id=sequence_id)

    def stop(self) -> None:
        """End the process at once: it holds nothing that is needed. `on_death` is not called."""
        self.kill()
        if self._process is None or self._connection is None:
            return
        self._process.wait()
        # Whoever reads finds the end of the file. Closing is not for another thread to do under a read.
        if self._reader is not None:
            self._reader.join()
            self._connection.close()

    def kill(self) -> None:
        """As `stop`, but without waiting for the end."""
        self._stopping.set()
        if self._process is not None:
            self._process.kill()

    def kill_hung(self) -> None:
        """Kill a process that makes no progress. Its death is noticed like any other."""
        if self._process is not None:
            self._process.kill()

    def _launched(self) -> tuple[Connection, subprocess.Popen[bytes]]:
        if self._connection is None or self._process is None:
            raise RuntimeError("the engine process was not launched")
        return self._connection, self._process

    def _send(self, message: ToEngine) -> None:
        connection, _ = self._launched()
        try:
            with self._send_lock:
                connection.send(message)
        except OSError as error:
            raise EngineDiedError("The engine process is gone.") from error

    def _read(self) -> None:
        """Thread: deliver reports until the pipe ends."""
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
            self._on_death(self._reap(process))

    def _reap(self, process: subprocess.Popen[bytes]) -> int:
        """The exit code of a process that closed its pipe; one that then does not end is killed."""
        try:
            return process.wait(timeout=EXIT_GRACE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait()


def describe_exit(code: int) -> str:
    """An exit code in words: which signal, where it was one, and what that commonly means."""
    if code >= 0:
        return f"exit code {code}"
    hint = {-9: ", often the kernel's out-of-memory killer", -11: ", a crash in native code"}.get(code, "")
    return f"signal {-code}{hint}"
