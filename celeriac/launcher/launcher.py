"""Starts the children, restarts them, and stops them. All decisions are made in the main thread."""

from __future__ import annotations

import heapq
import queue
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from types import FrameType

from celeriac.errors import CeleriacError
from celeriac.launcher.console import Console
from celeriac.launcher.kept_jobs import KeptJobs
from celeriac.launcher.readiness import ReadinessCheck
from celeriac.launcher.redis_program import RedisServerError
from celeriac.launcher.redis_server import DataFolder
from tasks.processes.child import EXIT_WINDOW_S, MAX_EXITS, Child, Role, describe_exit

#: How long Redis may take to start, in seconds. It reads its whole append-only file first.
REDIS_START_S = 120.0
#: Interval between two checks of Redis during its start, in seconds.
REDIS_POLL_S = 0.02


class LaunchError(CeleriacError):
    """A child cannot run."""


@dataclass(frozen=True, slots=True)
class _StopRequested:
    number: signal.Signals


@dataclass(frozen=True, slots=True)
class _Exited:
    child: Child
    code: int


@dataclass(frozen=True, slots=True)
class _Ready:
    pass


class _StopError(Exception):
    """A signal asked the launcher to stop."""


class Launcher:
    """Runs the embedded Redis, if there is one, and then the other roles, until a signal or a failure."""

    def __init__(
        self,
        *,
        redis: tuple[DataFolder, Role] | None,
        front_ends: Sequence[Role],
        workers: Sequence[Role],
        console: Console,
        url: str,
        worker_names: Sequence[Sequence[str]],
        are_switching: bool,
        count_kept_jobs: Callable[[], KeptJobs | None],
    ) -> None:
        """`front_ends` are stopped first, then `workers`, then Redis. `url`: of the API.

        `worker_names`: of the workers of each checkpoint. `are_switching`: they load those of a folder in turn.
        `count_kept_jobs` is called after the workers have stopped.
        """
        self._console = console
        self._folder = None if redis is None else redis[0]
        self._redis = [] if redis is None else [self._child(redis[1])]
        self._front_ends = [self._child(role) for role in front_ends]
        self._workers = [self._child(role) for role in workers]
        self._url = url
        self._count_kept_jobs = count_kept_jobs
        self._readiness = ReadinessCheck(
            url, worker_names, lambda: self._events.put(_Ready()), are_switching=are_switching
        )
        self._events: queue.SimpleQueue[_StopRequested | _Exited | _Ready] = queue.SimpleQueue()
        #: Heap of (time of the restart, id, child).
        self._restarts: list[tuple[float, int, Child]] = []
        self._is_ready = False
        self._stopping = False

    def run(self) -> int:
        """Run until a signal or a failure. Returns the exit code: 0 after a signal, 1 after a failure."""
        stop_signals = [signal.SIGINT, signal.SIGTERM]
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
            # Closing the terminal stops the launcher, unless it runs under nohup.
            stop_signals.append(signal.SIGHUP)
        previous = {number: signal.signal(number, self._on_signal) for number in stop_signals}
        failure: CeleriacError | None = None
        try:
            self._start_redis()
            for child in (*self._front_ends, *self._workers):
                child.start()
            self._readiness.start()
            self._supervise()
        except _StopError:
            self._console.info("Stopping. Running jobs go back to the queue.")
        except (LaunchError, RedisServerError) as error:
            failure = error
        finally:
            kept = self._stop_all()
            for number, handler in previous.items():
                signal.signal(number, handler)
        if kept is not None:
            self._console.info(str(kept), waiting=kept.waiting, started=kept.started)
        if failure is not None:
            # Printed last, after the output of the children, where it is easy to find.
            self._console.error(f"Error: {failure}")
        self._console.flush()
        return 0 if failure is None else 1

    def _child(self, role: Role) -> Child:
        return Child(
            role,
            on_line=partial(self._console.child_line, role.name),
            on_exit=lambda child, code: self._events.put(_Exited(child, code)),
            on_output_end=partial(self._console.child_ended, role.name),
        )

    def _on_signal(self, number: int, _: FrameType | None) -> None:
        if self._stopping:
            # A second Ctrl-C kills the children that still run, except Redis, which has to write the jobs to its file.
            for child in (*self._front_ends, *self._workers):
                child.kill()
        self._events.put(_StopRequested(signal.Signals(number)))

    def _start_redis(self) -> None:
        if self._folder is None:
            return
        deadline = time.monotonic() + REDIS_START_S
        self._redis[0].start()
        while not self._folder.responds():
            try:
                self._handle(self._events.get(timeout=REDIS_POLL_S))
            except queue.Empty:
                if time.monotonic() > deadline:
                    raise LaunchError(
                        f"Redis does not respond after {REDIS_START_S:g} s; see {self._folder.log}."
                    ) from None
        self._folder.remember_program()

    def _supervise(self) -> None:
        """Handle events and restarts until an exception ends the loop."""
        while True:
            wait_s = max(0.0, self._restarts[0][0] - time.monotonic()) if self._restarts else None
            try:
                self._handle(self._events.get(timeout=wait_s))
            except queue.Empty:
                _, _, child = heapq.heappop(self._restarts)
                child.start()

    def _handle(self, event: _StopRequested | _Exited | _Ready) -> None:
        match event:
            case _StopRequested():
                raise _StopError
            case _Ready():
                self._is_ready = True
                self._console.info(f"Celeriac is ready: {self._url} (docs at /docs)", url=self._url)
            case _Exited():
                self._schedule_restart(event.child, event.code)

    def _schedule_restart(self, child: Child, code: int) -> None:
        """Schedule the restart of a child that exited. Raises LaunchError during startup and after too many exits."""
        name, how = child.role.name, describe_exit(code)
        if not self._is_ready:
            raise LaunchError(f"{name} exited during startup ({how}). {self._last_output(child)}")
        pause_s = child.count_exit()
        if pause_s is None:
            raise LaunchError(
                f"{name} exited {MAX_EXITS} times within {EXIT_WINDOW_S:g} s, the last time with {how}. All jobs are "
                f"kept and continue at the next start. {self._last_output(child)}"
            )
        self._console.error(f"{name} exited ({how}); restarting it in {pause_s:g} s")
        heapq.heappush(self._restarts, (time.monotonic() + pause_s, id(child), child))

    def _last_output(self, child: Child) -> str:
        if child in self._redis and self._folder is not None:
            # What it prints before it has opened its log is not in the log.
            if child.last_line:
                return f"Its last line of output: {child.last_line}"
            return f"The last line of its log, {self._folder.log}: {self._folder.last_log_line()}"
        return f"Its last line of output: {child.last_line}"

    def _stop_all(self) -> KeptJobs | None:
        """Stop the front ends first, then the workers, Redis last. Returns the jobs that are not finished."""
        self._stopping = True
        self._readiness.stop()
        self._stop_group(self._front_ends)
        self._stop_group(self._workers)
        kept = self._count_kept_jobs()
        self._stop_group(self._redis)
        return kept

    def _stop_group(self, group: Sequence[Child]) -> None:
        for child in group:
            child.terminate()
        started = time.monotonic()
        for child in group:
            if not child.wait(max(0.0, started + child.role.stop_s - time.monotonic())):
                self._console.error(f"{child.role.name} did not exit within {child.role.stop_s:g} s and is killed")
                child.kill()
                child.wait(child.role.stop_s)
