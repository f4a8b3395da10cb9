"""Starts the children, keeps them running, and ends them. One thread, the main one, decides everything."""

from __future__ import annotations

import heapq
import queue
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from types import FrameType

from celeriac.errors import CeleriacError
from celeriac.launcher.child import DEATHS_WITHIN_S, MAX_DEATHS, Child, Role, describe_exit
from celeriac.launcher.console import Console
from celeriac.launcher.readiness import ReadinessWatch
from celeriac.launcher.redis_server import DataFolder

#: How long Redis may take until it answers, in seconds; it reads its whole file first.
REDIS_START_S = 120.0
#: How often it is asked meanwhile, in seconds.
REDIS_ASK_S = 0.02


class LaunchError(CeleriacError):
    """A child cannot run. The message is for people."""


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
    """Somebody asked us to stop while we started."""


class Launcher:
    """Runs an embedded Redis, if there is one, then the other roles, until a signal or a failure ends it all."""

    def __init__(
        self,
        *,
        redis: tuple[DataFolder, Role] | None,
        fronts: Sequence[Role],
        workers: Sequence[Role],
        console: Console,
        url: str,
        worker_names: Sequence[str],
    ) -> None:
        """`fronts` are stopped before `workers`, and Redis last. `url` is where the API will answer."""
        self._console = console
        self._folder = None if redis is None else redis[0]
        self._redis = [] if redis is None else [self._child(redis[1])]
        self._fronts = [self._child(role) for role in fronts]
        self._workers = [self._child(role) for role in workers]
        self._url = url
        self._readiness = ReadinessWatch(url, worker_names, lambda: self._events.put(_Ready()))
        self._events: queue.SimpleQueue[_StopRequested | _Exited | _Ready] = queue.SimpleQueue()
        #: (when, id, child): children that wait for their next start.
        self._restarts: list[tuple[float, int, Child]] = []
        self._is_ready = False
        self._stopping = False

    def run(self) -> int:
        """Returns the exit code: 0 after a signal, 1 where something cannot run."""
        stop_signals = [signal.SIGINT, signal.SIGTERM]
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
            # A terminal that is closed ends us, unless nohup said otherwise.
            stop_signals.append(signal.SIGHUP)
        previous = {number: signal.signal(number, self._signalled) for number in stop_signals}
        failure: LaunchError | None = None
        try:
            self._start_redis()
            for child in (*self._fronts, *self._workers):
                child.start()
            self._readiness.start()
            self._supervise()
        except _StopError:
            pass
        except LaunchError as error:
            failure = error
        finally:
            self._stop_all()
            for number, handler in previous.items():
                signal.signal(number, handler)
        if failure is not None:
            # Behind all that the children said, where it is found.
            self._console.complain(f"Error: {failure}")
        return 0 if failure is None else 1

    def _child(self, role: Role) -> Child:
        return Child(role, self._console, lambda child, code: self._events.put(_Exited(child, code)))

    def _signalled(self, number: int, _: FrameType | None) -> None:
        if self._stopping:
            # A second Ctrl-C: whoever does not end by itself is ended. Redis has the jobs, and takes its time.
            for child in (*self._fronts, *self._workers):
                child.kill()
        self._events.put(_StopRequested(signal.Signals(number)))

    def _start_redis(self) -> None:
        if self._folder is None:
            return
        give_up_at = time.monotonic() + REDIS_START_S
        self._redis[0].start()
        while not self._folder.answers():
            try:
                self._handle(self._events.get(timeout=REDIS_ASK_S))
            except queue.Empty:
                if time.monotonic() > give_up_at:
                    raise LaunchError(
                        f"Redis does not answer after {REDIS_START_S:g} s; see {self._folder.log}."
                    ) from None

    def _supervise(self) -> None:
        """Handle what happens. Ends by an exception alone."""
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
                self._console.say(f"Celeriac is ready: {self._url} (docs at /docs)")
            case _Exited():
                self._bury(event.child, event.code)

    def _bury(self, child: Child, code: int) -> None:
        """Arrange the next start of a child that ended. Raises LaunchError where that makes no sense."""
        name, how = child.role.name, describe_exit(code)
        if not self._is_ready:
            raise LaunchError(f"{name} ended while everything was being started ({how}). {self._last_words(child)}")
        pause_s = child.pause_after_death()
        if pause_s is None:
            raise LaunchError(
                f"{name} ended {MAX_DEATHS} times within {DEATHS_WITHIN_S:g} s, last with {how}. All jobs are kept "
                f"and go on at the next start. {self._last_words(child)}"
            )
        self._console.complain(f"{name} ended ({how}); it is started again in {pause_s:g} s")
        heapq.heappush(self._restarts, (time.monotonic() + pause_s, id(child), child))

    def _last_words(self, child: Child) -> str:
        if child in self._redis and self._folder is not None:
            return f"Its log, {self._folder.log}, ends with: {self._folder.last_words()}"
        return f"Its last line: {child.last_line}"

    def _stop_all(self) -> None:
        """First what takes jobs, then what runs them, Redis last."""
        self._stopping = True
        self._readiness.stop()
        for group in (self._fronts, self._workers, self._redis):
            for child in group:
                child.terminate()
            started = time.monotonic()
            for child in group:
                if not child.wait(max(0.0, started + child.role.stop_s - time.monotonic())):
                    self._console.complain(f"{child.role.name} did not end within {child.role.stop_s:g} s: killed")
                    child.kill()
                    child.wait(child.role.stop_s)
