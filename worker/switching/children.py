"""The children of a switching worker: which checkpoint each of them has, and what it does."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Protocol

import structlog

from tasks.processes.child import EXIT_WINDOW_S, FIRST_PAUSE_S, MAX_EXITS, describe_exit
from tasks.switching_info import ChildInfo, ChildState
from worker.switching.catalog import Offered
from worker.switching.control import Order

log = structlog.get_logger(__name__)

#: How long a checkpoint is not offered whose children failed, in seconds. The reason may have been a lack of memory.
UNLOADABLE_S = 600.0


class Process(Protocol):
    """What is needed of `ChildWorker`."""

    @property
    def memory_bytes(self) -> int:
        """Memory that it uses now, 0 if that is not known."""

    def start(self) -> None:
        """Start it without an order."""

    def obey(self, order: Order) -> None:
        """Give it the order."""

    def retire(self) -> None:
        """Let it finish its jobs and exit."""

    def terminate(self) -> None:
        """Let it release its jobs and exit."""

    def kill(self) -> None:
        """Kill it."""

    def wait(self, timeout_s: float) -> bool:
        """Wait for its exit."""

    def close(self) -> None:
        """Forget it, or end it if it has no order."""


@dataclass(frozen=True, slots=True)
class ChildReady:
    """A child takes jobs."""

    process: Process


@dataclass(frozen=True, slots=True)
class ChildUnloaded:
    """A child has retired, and needs no more memory. It exits soon."""

    process: Process


@dataclass(frozen=True, slots=True)
class ChildExited:
    """A child has exited, by itself or because it was told to."""

    process: Process
    code: int


ChildEvent = ChildReady | ChildUnloaded | ChildExited
#: Makes a process that is not started, and calls the function with what happens to it, in other threads.
NewProcess = Callable[[Callable[[ChildEvent], None]], Process]


class ChildrenError(Exception):
    """No child can be started. The message is for people."""


@dataclass(slots=True)
class _Child:
    process: Process
    worker: str
    offered: Offered
    #: Monotonic time of its order.
    ordered_at: float
    state: ChildState = ChildState.LOADING
    #: Monotonic time at which it began to take jobs; None before.
    ready_at: float | None = None


@dataclass(slots=True)
class _Failures:
    """How often the children of a checkpoint failed one after the other."""

    offered: Offered
    count: int = 0
    #: Whether the last one had begun to take jobs.
    served: bool = False
    #: Monotonic time before which no other one is started.
    pause_until: float = 0.0


class Children:
    """All children, and one spare process that has imported everything. For the main thread."""

    def __init__(
        self,
        new_process: NewProcess,
        on_event: Callable[[ChildEvent], None],
        *,
        worker_name: Callable[[str], str],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`on_event` is called in other threads; pass the event to `handle`. `worker_name`: of a checkpoint's child."""
        self._new_process = new_process
        self._on_event = on_event
        self._worker_name = worker_name
        self._clock = clock
        self._children: dict[str, _Child] = {}
        #: Children that have retired and have not exited yet.
        self._leaving: dict[Process, str] = {}
        self._spare: Process | None = None
        self._spare_exits = 0
        self._failures: dict[str, _Failures] = {}

    def infos(self) -> tuple[ChildInfo, ...]:
        """What each child does, for the heartbeat."""
        return tuple(
            ChildInfo(
                checkpoint=name,
                worker=child.worker,
                memory_bytes=max(child.offered.offer.memory_bytes, child.process.memory_bytes),
                state=child.state,
            )
            for name, child in self._children.items()
        )

    def unloadable(self, offers: Mapping[str, Offered]) -> frozenset[str]:
        """The checkpoints whose children failed too often, until their files change or some minutes have passed."""
        for name, failures in [*self._failures.items()]:
            now = offers.get(name)
            is_old = self._clock() - failures.pause_until >= UNLOADABLE_S
            if is_old or now is None or now.card.digest != failures.offered.card.digest:
                del self._failures[name]
        return frozenset(name for name, failures in self._failures.items() if failures.count >= MAX_EXITS)

    def load(self, name: str, offered: Offered) -> None:
        """Start a child for a checkpoint, unless it has one, or failed a moment ago. Raises ChildrenError."""
        failures = self._failures.get(name)
        if name in self._children or (failures is not None and self._clock() < failures.pause_until):
            return
        process, self._spare = self._spare or self._started(), None
        worker = self._worker_name(name)
        process.obey(Order(checkpoint=offered.argument, name=name, worker_name=worker))
        self._children[name] = _Child(process, worker, offered, self._clock())
        log.info("checkpoint_wanted", checkpoint=name, child=worker)

    def give_up(self, name: str, *, reason: str, hand_on: bool = False) -> None:
        """Let a child end: after the jobs that it runs, or, with `hand_on`, at once. Nothing if it ends already."""
        child = self._children.get(name)
        if child is None or child.state is ChildState.RETIRING:
            return
        log.info("checkpoint_given_up", checkpoint=name, child=child.worker, reason=reason, hand_on=hand_on)
        child.state = ChildState.RETIRING
        if hand_on:
            child.process.terminate()
        else:
            child.process.retire()

    def give_up_changed(self, offers: Mapping[str, Offered]) -> None:
        """Let the children end whose checkpoints are no longer offered, or have other weights now."""
        for name, child in self._children.items():
            now = offers.get(name)
            if now is None:
                self.give_up(name, reason="its files are gone or cannot be loaded")
            elif now.card.digest != child.offered.card.digest:
                self.give_up(name, reason="its files have changed")

    def handle(self, event: ChildEvent) -> None:
        """Note what has happened to a child. Raises ChildrenError if spare processes exit one after the other."""
        name = next((name for name, child in self._children.items() if child.process is event.process), None)
        match event:
            case ChildReady():
                if name is not None and (child := self._children[name]).state is ChildState.LOADING:
                    child.state, child.ready_at = ChildState.LOADED, self._clock()
                    seconds = round(child.ready_at - child.ordered_at, 2)
                    log.info("checkpoint_loaded", checkpoint=name, child=child.worker, seconds=seconds)
                    self._spare_exits = 0
            case ChildUnloaded():
                if name is not None:
                    child = self._children.pop(name)
                    self._leaving[child.process] = child.worker
                    self._note_end(name, child)
            case ChildExited(process, code):
                process.close()
                if name is not None:
                    self._note_exit(name, self._children.pop(name), code)
                elif process is self._spare:
                    self._note_exit_of_spare(code)
                self._leaving.pop(process, None)

    def restart_crashed(self, offers: Mapping[str, Offered], *, budget_bytes: int) -> None:
        """Start the children again that crashed while they served jobs, if there is memory. Raises ChildrenError.

        The new one takes the jobs of the old one from their leases, because it has the same name.
        """
        for name, failures in self._failures.items():
            if failures.served and failures.count < MAX_EXITS and name in offers and name not in self._children:
                used = sum(child.memory_bytes for child in self.infos())
                if not self._children or used + failures.offered.offer.memory_bytes <= budget_bytes:
                    self.load(name, failures.offered)

    def keep_spare(self) -> None:
        """Start a spare process if there is none and no child loads. Raises ChildrenError."""
        if self._spare is None and all(child.state is not ChildState.LOADING for child in self._children.values()):
            self._spare = self._started()

    def terminate(self) -> None:
        """Let all children release their jobs and exit, and end the spare process."""
        if self._spare is not None:
            self._spare.close()
            self._spare.kill()
        for process in self._processes():
            process.terminate()

    def wait(self, timeout_s: float) -> None:
        """Wait until all children have exited. Those that do not within `timeout_s` are killed."""
        until = self._clock() + timeout_s
        for process, worker in self._processes().items():
            if not process.wait(max(0.0, until - self._clock())):
                log.error("child_killed", child=worker)
                process.kill()
                process.wait(timeout_s)

    def states(self) -> dict[str, ChildState]:
        """What each child does, by the name of its checkpoint."""
        return {name: child.state for name, child in self._children.items()}

    @property
    def names(self) -> Collection[str]:
        """The checkpoints that have a child."""
        return self._children.keys()

    def _processes(self) -> dict[Process, str]:
        """All processes that were given an order, with their names as workers."""
        return {**self._leaving, **{child.process: child.worker for child in self._children.values()}}

    def _started(self) -> Process:
        process = self._new_process(self._on_event)
        try:
            process.start()
        except OSError as error:
            raise ChildrenError(f"A child could not be started: {error.strerror}.") from error
        return process

    def _note_end(self, name: str, child: _Child) -> None:
        """Note that a child has done what it was told."""
        log.info("checkpoint_unloaded", checkpoint=name, child=child.worker)
        self._failures.pop(name, None)

    def _note_exit_of_spare(self, code: int) -> None:
        self._spare = None
        self._spare_exits += 1
        if self._spare_exits >= MAX_EXITS:
            raise ChildrenError(
                f"A child exited {self._spare_exits} times before it was told what to load, the last time with "
                f"{describe_exit(code)}."
            )

    def _note_exit(self, name: str, child: _Child, code: int) -> None:
        if child.state is ChildState.RETIRING or (code == 0 and child.ready_at is not None):
            # It was told to, by this worker or by an operator.
            self._note_end(name, child)
            return
        failures = self._failures.setdefault(name, _Failures(child.offered))
        if child.ready_at is not None and self._clock() - child.ready_at > EXIT_WINDOW_S:
            failures.count = 0
        failures.count += 1
        failures.offered, failures.served = child.offered, child.ready_at is not None
        failures.pause_until = self._clock() + FIRST_PAUSE_S * 2 ** (failures.count - 1)
        log.error(
            "child_exited",
            checkpoint=name,
            child=child.worker,
            exit=describe_exit(code),
            served=failures.served,
            failures=failures.count,
        )
        if failures.count >= MAX_EXITS:
            log.error(
                "checkpoint_unloadable",
                checkpoint=name,
                what=f"its children failed {failures.count} times; it is not offered for {UNLOADABLE_S:g} s",
            )
