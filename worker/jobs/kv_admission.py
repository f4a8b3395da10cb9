"""Admission by KV memory: a job is claimed only when memory for it is reserved, in order of arrival.

A suspect is a job that lost workers or engines since its last new token. While one suspect runs and is not cleared, no
other job is admitted. So when an engine or a worker crashes, at most one job in it was not cleared, and jobs that wait
for admission are not claimed and count no loss.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from worker.engine.kv.budget import KvBudget


class AdmissionClosedError(Exception):
    """The worker takes no more jobs."""


class ReservationRemovedError(Exception):
    """The job was removed while it waited."""


class Reservation:
    """The KV memory of one job: first it waits for the memory, then it holds it."""

    def __init__(self, admission: KvAdmission, job_id: str) -> None:
        self._admission = admission
        self.job_id = job_id
        #: Whether `KvAdmission.remove` was called for it.
        self.removed = False

    def clear(self) -> None:
        """Admit other jobs, because this one is no longer a suspect. Does nothing if it was not a suspect."""
        self._admission.clear(self)


class KvAdmission:
    """Reserves KV memory, first come, first served: a long sequence waits for its memory and is never overtaken.

    Safe for use by several threads. It owns the budget: nothing else may reserve or release.
    """

    def __init__(self, budget: KvBudget) -> None:
        self._budget = budget
        # Its lock is reentrant, which `reserve` needs when it calls `clear`.
        self._condition = threading.Condition()
        self._waiting: deque[Reservation] = deque()
        #: The suspect that holds memory and is not cleared.
        self._suspect: Reservation | None = None
        self._closed = False

    @property
    def waiting(self) -> tuple[Reservation, ...]:
        """Reservations without memory, the next one first."""
        with self._condition:
            return tuple(self._waiting)

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        with self._condition:
            return self._closed

    @contextmanager
    def reserve(
        self, prompt_tokens: int, max_tokens: int, *, job_id: str, suspect: bool = False
    ) -> Iterator[Reservation]:
        """Wait for the memory of one sequence, and hold it inside the `with` block.

        Raises AdmissionClosedError and ReservationRemovedError, in both cases without memory.
        """
        tokens = self._budget.need(prompt_tokens, max_tokens)
        reservation = Reservation(self, job_id)
        with self._condition:
            self._waiting.append(reservation)
            try:
                self._condition.wait_for(
                    lambda: self._closed or reservation.removed or self._try_admit(reservation, tokens)
                )
                if self._closed:
                    raise AdmissionClosedError
                if reservation.removed:
                    raise ReservationRemovedError
                if suspect:
                    self._suspect = reservation
            finally:
                self._waiting.remove(reservation)
                self._condition.notify_all()
        try:
            yield reservation
        finally:
            with self._condition:
                self._budget.release(tokens)
                self.clear(reservation)
                self._condition.notify_all()

    def clear(self, reservation: Reservation) -> None:
        """Admit others again if this reservation is the suspect's."""
        with self._condition:
            if self._suspect is reservation:
                self._suspect = None
                self._condition.notify_all()

    def remove(self, reservations: Iterable[Reservation]) -> None:
        """Remove reservations that wait. Those that hold memory keep it."""
        with self._condition:
            for reservation in reservations:
                reservation.removed = True
            self._condition.notify_all()

    def close(self) -> None:
        """Refuse all reservations that wait, and all later ones."""
        with self._condition:
            self._closed = True
            self._condition.notify_all()

    def _try_admit(self, reservation: Reservation, tokens: int) -> bool:
        """Reserve its memory if it is the first, no suspect runs, and the memory is free. Returns whether it did."""
        return self._waiting[0] is reservation and self._suspect is None and self._budget.try_reserve(tokens)
