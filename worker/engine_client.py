"""The Celery side's handle on the engine process: start it, talk to it, notice its death."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection

import structlog

from worker.engine.request import SequenceRequest
from worker.messages import Abort, FromEngine, LoadFailed, Ready, Report, Start, Submit, ToEngine

log = structlog.get_logger(__name__)

#: How long an engine process that was told to stop may take, in seconds. It ends after the step that it is in.
STOP_GRACE_S = 1.0


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
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "worker.engine_process", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                cwd=os.path.dirname(os.path.dirname(os.path.abspath(__file__))),
            )
        self._connection = Connection(ours.detach())
        self._send(self._start)

    def wait_ready(self, *, timeout_s: float, should_stop: Callable[[], bool]) -> Ready:
        """Wait until the checkpoint is loaded, then begin to read reports.

        Raises EngineLoadError where it cannot be loaded in time, or when `should_stop` answers yes.
        """
        if self._connection is None or self._process is None:
            raise RuntimeError("wait_ready before launch")
        deadline = time.monotonic() + timeout_s
        while not self._connection.poll(0.1):
            if should_stop():
                self.stop()
                raise EngineLoadError("The worker was told to stop while it loaded the checkpoint.")
            if time.monotonic() > deadline:
                self.stop()
                raise EngineLoadError(
                    f"Loading took longer than {timeout_s:g} s. If the disk is slow, raise CELERIAC_LOAD_TIMEOUT_S."
                )
        try:
            first: FromEngine = self._connection.recv()
        except (EOFError, OSError):
            code = self._process.wait(timeout=10)
            raise EngineLoadError(
                f"The engine process ended while it loaded the checkpoint ({describe_exit(code)})."
            ) from None
        if isinstance(first, LoadFailed):
            self.stop()
            raise EngineLoadError(first.message)
        if not isinstance(first, Ready):
            raise EngineLoadError(f"The engine process spoke out of turn: {type(first).__name__}.")
        self.last_report_at = time.monotonic()
        self._reader = threading.Thread(target=self._read, name="engine-reader", daemon=True)
        self._reader.start()
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
        """End the process: close the pipe, and kill it where its step takes too long. `on_death` is not called."""
        self._stopping.set()
        process = self._process
        if process is None or self._connection is None:
            return
        # Shut down rather than closed: the reader thread may sit in a read of this descriptor.
        with self._send_lock, socket.socket(fileno=os.dup(self._connection.fileno())) as pipe:
            pipe.shutdown(socket.SHUT_RDWR)
        try:
            process.wait(timeout=STOP_GRACE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if self._reader is not None and self._reader is not threading.current_thread():
            self._reader.join()
        self._connection.close()

    def _send(self, message: ToEngine) -> None:
        if self._connection is None:
            raise RuntimeError("send before launch")
        try:
            with self._send_lock:
                self._connection.send(message)
        except OSError as error:
            raise EngineDiedError("The engine process is gone.") from error

    def _read(self) -> None:
        """Thread: deliver reports until the pipe ends."""
        if self._connection is None or self._process is None:
            raise RuntimeError("read before launch")
        while True:
            try:
                report: FromEngine = self._connection.recv()
            except (EOFError, OSError):
                break
            self.last_report_at = time.monotonic()
            if isinstance(report, Report):
                self._on_report(report)
        if not self._stopping.is_set():
            self._on_death(self._process.wait())


def describe_exit(code: int) -> str:
    """An exit code in words: which signal, where it was one, and what that commonly means."""
    if code >= 0:
        return f"exit code {code}"
    hint = {-9: ", often the kernel's out-of-memory killer", -11: ", a crash in native code"}.get(code, "")
    return f"signal {-code}{hint}"
