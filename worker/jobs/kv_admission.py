"""The door in front of the engine: a job is claimed only when KV memory for it is reserved, in order of arrival.

A suspect, a job that lost workers or engines since its last new token, is watched from when it goes in until it is
cleared, and nobody goes in behind it meanwhile. So whatever dies, at most one job that nobody has cleared was inside,
and those that wait in line, unclaimed, lose nothing.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from worker.engine.kv.budget import KvBudget


class GateClosedError(Exception):
    """The worker takes no more jobs."""


class WithdrawnError(Exception):
    """The job was called out of the line."""


class Ticket:
    """One job's place: in line, and then inside."""

    def __init__(self, gate: KvGate, name: str) -> None:
        self._gate = gate
        self.name = name
        #: Whether it was called out of the line.
        self.withdrawn = False

    def clear(self) -> None:
        """The suspicion was wrong: others may go in. Nothing happens where there is none."""
        self._gate.clear(self)


class KvGate:
    """First come, first served: a long sequence at the head makes short ones behind it wait, and so never starves."""

    def __init__(self, budget: KvBudget) -> None:
        self._budget = budget
        # Reentrant: a visit that ends clears itself.
        self._condition = threading.Condition()
        self._line: deque[Ticket] = deque()
        #: The suspect inside.
        self._watched: Ticket | None = None
        self._open = True

    @property
    def waiting(self) -> tuple[Ticket, ...]:
        """Jobs in line, the next one first."""
        with self._condition:
            return tuple(self._line)

    @contextmanager
    def reserve(self, prompt_tokens: int, max_tokens: int, *, name: str = "", alone: bool = False) -> Iterator[Ticket]:
        """Hold the memory of one sequence; `alone` for a suspect.

        Waits for its turn and its memory. Raises GateClosedError and WithdrawnError.
        """
        need = self._budget.need(prompt_tokens, max_tokens)
        ticket = Ticket(self, name)
        with self._condition:
            self._line.append(ticket)
            try:
                self._condition.wait_for(lambda: not self._open or ticket.withdrawn or self._lets_in(ticket, need))
                if not self._open:
                    raise GateClosedError
                if ticket.withdrawn:
                    raise WithdrawnError
                if alone:
                    self._watched = ticket
            finally:
                self._line.remove(ticket)
                self._condition.notify_all()
        try:
            yield ticket
        finally:
            with self._condition:
                self._budget.release(need)
                self.clear(ticket)
                self._condition.notify_all()

    def _lets_in(self, ticket: Ticket, need: int) -> bool:
        """Whether it is a ticket's turn; its memory is reserved then."""
        return self._line[0] is ticket and self._watched is None and self._budget.try_reserve(need)

    def clear(self, ticket: Ticket) -> None:
        """Stop watching a suspect; of anybody else there is nothing to clear."""
        with self._condition:
            if self._watched is ticket:
                self._watched = None
                self._condition.notify_all()

    def withdraw(self, tickets: Iterable[Ticket]) -> None:
        """Call jobs out of the line. Who is inside by now stays."""
        with self._condition:
            for ticket in tickets:
                ticket.withdrawn = True
            self._condition.notify_all()

    def close(self) -> None:
        """Turn away everyone who waits, and everyone who comes."""
        with self._condition:
            self._open = False
            self._condition.notify_all()
