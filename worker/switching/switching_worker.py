"""The loop of a switching worker: heartbeat with offers, the one decision, and what follows from it."""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

import structlog
from redis.exceptions import RedisError

from tasks.errors import SchemaError, WorkerReplacedError
from tasks.redis_client.errors import describe
from tasks.store.switching_store import Load, Offer, Retire
from tasks.switching_info import ChildState, SwitchingInfo
from worker.switching.catalog import Offered
from worker.switching.children import ChildEvent, Children, ChildrenError

log = structlog.get_logger(__name__)

#: Shortest time between two decisions, in seconds. Each job for a checkpoint that is not loaded asks for one.
DECIDE_EVERY_S = 0.05
#: How often an outage of Redis is logged, in seconds.
LOG_EVERY_S = 10.0


class Queue(Protocol):
    """What is needed of `SwitchingStore`."""

    def offer(
        self, info: SwitchingInfo, offers: Mapping[str, Offer], *, unloadable: Collection[str] = ()
    ) -> frozenset[str]:
        """Send a heartbeat and the offers. Returns those that were refused."""

    def next_switch(self, info: SwitchingInfo) -> Load | Retire | None:
        """What to do now."""

    def retract(self, info: SwitchingInfo) -> None:
        """End all offers."""


@dataclass(frozen=True, slots=True)
class Wake:
    """Look again now: a job waits, or the offers have changed."""


@dataclass(frozen=True, slots=True)
class Stop:
    """End the worker. `reason`: why it cannot continue; empty if it was told to stop."""

    reason: str = ""


Event = ChildEvent | Wake | Stop


class SwitchingWorker:
    """Starts and ends the children. `run` belongs to the main thread; `post` may be called from anywhere."""

    def __init__(
        self,
        store: Queue,
        info: SwitchingInfo,
        *,
        children: Callable[[Callable[[ChildEvent], None]], Children],
        offers: Callable[[], Mapping[str, Offered]],
        on_beat: Callable[[], None],
        reap: Callable[[], None],
        heartbeat_s: float,
        stop_s: float,
    ) -> None:
        """`children` makes the children, given what is called when something happens to one.

        `offers` returns what can be loaded now. `on_beat` is called with every heartbeat, also while Redis is away.
        `reap` runs the reaper, which otherwise only API processes and loaded checkpoints run. `stop_s`: how long the
        children may take to exit at the end, in seconds.
        """
        self._store = store
        self._info = info
        self._offers = offers
        self._on_beat = on_beat
        self._reap = reap
        self._heartbeat_s = heartbeat_s
        self._stop_s = stop_s
        # Its `put` may be called in a signal handler.
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._children = children(self.post)
        #: Monotonic times of the last heartbeat and the last decision.
        self._beat_at = self._decided_at = float("-inf")
        self._refused: frozenset[str] = frozenset()
        self._logged_away_at = float("-inf")

    def post(self, event: Event) -> None:
        """Let the loop handle an event."""
        self._events.put(event)

    def run(self) -> int:
        """Run until a `Stop`. Returns the exit code: 0, or 1 if the worker could not continue."""
        reason = ""
        try:
            while True:
                if stop := self._wait():
                    reason = stop.reason
                    break
                self._step()
        except (ChildrenError, SchemaError, WorkerReplacedError) as error:
            reason = str(error)
        if reason:
            log.error("giving_up", reason=reason)
        log.info("stopping", children=len(self._children.names))
        stop_at = time.monotonic() + self._stop_s
        self._children.terminate()
        # Meanwhile: it takes long if Redis is away.
        self._retract()
        self._children.wait(max(0.0, stop_at - time.monotonic()))
        return 1 if reason else 0

    def _wait(self) -> Stop | None:
        """Wait for the next thing to do, and handle all events until then. Returns a `Stop` among them."""
        timeout_s = max(0.0, self._beat_at + self._heartbeat_s - time.monotonic())
        try:
            event = self._events.get(timeout=timeout_s)
            while True:
                if isinstance(event, Stop):
                    return event
                if not isinstance(event, Wake):
                    self._children.handle(event)
                event = self._events.get(timeout=max(0.0, self._decided_at + DECIDE_EVERY_S - time.monotonic()))
        except queue.Empty:
            return None

    def _step(self) -> None:
        """One round. Raises ChildrenError, SchemaError and WorkerReplacedError."""
        offers = self._offers()
        unloadable = self._children.unloadable(offers)
        loadable = {name: offered for name, offered in offers.items() if name not in unloadable}
        self._children.give_up_changed(loadable)
        self._children.restart_crashed(loadable, budget_bytes=self._info.budget_bytes)
        self._on_beat()
        try:
            self._beat(loadable, unloadable)
            self._decide(loadable)
            self._reap()
        except RedisError as error:
            if time.monotonic() - self._logged_away_at >= LOG_EVERY_S:
                self._logged_away_at = time.monotonic()
                log.warning("heartbeat_failed", error=describe(error))
        self._beat_at = time.monotonic()
        self._children.keep_spare()

    def _beat(self, offers: Mapping[str, Offered], unloadable: Collection[str]) -> None:
        refused = self._store.offer(
            self._current_info(), {name: one.offer for name, one in offers.items()}, unloadable=unloadable
        )
        for name in sorted(refused - self._refused):
            # A child that has the old weights of a checkpoint retires, and then the offer is accepted.
            if name not in self._children.names:
                log.warning("offer_refused", checkpoint=name, reason="other workers have other weights under this name")
        self._refused = refused

    def _decide(self, offers: Mapping[str, Offered]) -> None:
        """Ask what to do until there is nothing to do now."""
        self._decided_at = time.monotonic()
        before: dict[str, ChildState] | None = None
        while (states := self._children.states()) != before:
            match self._store.next_switch(self._current_info()):
                case Load(checkpoint) if checkpoint in offers:
                    self._children.load(checkpoint, offers[checkpoint])
                case Retire(checkpoint, wanted, hand_on=hand_on):
                    self._children.give_up(checkpoint, reason=f"jobs wait for {wanted}", hand_on=hand_on)
                case _:
                    return
            before = states

    def _current_info(self) -> SwitchingInfo:
        return replace(self._info, children=self._children.infos())

    def _retract(self) -> None:
        try:
            self._store.retract(self._info)
        except RedisError as error:
            log.warning("retract_failed", error=describe(error))
