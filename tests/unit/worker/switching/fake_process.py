"""A child that does what a test says."""

from __future__ import annotations

from collections.abc import Callable

from worker.switching.children import ChildEvent, ChildExited, ChildReady, ChildUnloaded
from worker.switching.control import Order


class FakeProcess:
    """Records what it is told. The test decides when it is ready and when it exits."""

    def __init__(self, on_event: Callable[[ChildEvent], None]) -> None:
        self._on_event = on_event
        self.told: list[str] = []
        self.order: Order | None = None
        self.memory_bytes = 0
        #: Whether it exits as soon as it is told to.
        self.exits = True

    def start(self) -> None:
        self.told.append("start")

    def obey(self, order: Order) -> None:
        self.order = order
        self.told.append(f"obey {order.name}")

    def retire(self) -> None:
        self.told.append("retire")

    def terminate(self) -> None:
        self.told.append("terminate")

    def kill(self) -> None:
        self.told.append("kill")

    def wait(self, timeout_s: float) -> bool:
        return self.exits or "kill" in self.told

    def close(self) -> None:
        self.told.append("close")

    def becomes_ready(self) -> None:
        """Say that it takes jobs."""
        self._on_event(ChildReady(self))

    def unloads(self) -> None:
        """Say that it has retired."""
        self._on_event(ChildUnloaded(self))

    def exit(self, code: int = 0) -> None:
        """Say that it has exited."""
        self._on_event(ChildExited(self, code))
