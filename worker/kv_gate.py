"""The door in front of the engine: a job is claimed only when KV memory for it is reserved, in order of arrival."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from worker.engine.kv_ledger import KvLedger


class GateClosedError(Exception):
    """The worker takes no more jobs."""


class KvGate:
    """First come, first served: a long sequence at the head makes short ones behind it wait, and so never starves."""

    def __init__(self, ledger: KvLedger) -> None:
        self._ledger = ledger
        self._condition = threading.Condition()
        self._line: deque[object] = deque()
        self._open = True

    @property
    def waiting(self) -> int:
        """Jobs in line."""
        return len(self._line)

    @contextmanager
    def reserve(self, prompt_tokens: int, max_tokens: int) -> Iterator[None]:
        """Hold the memory of one sequence. Waits for its turn and its memory; raises GateClosedError."""
        need = self._ledger.need(prompt_tokens, max_tokens)
        ticket = object()
        with self._condition:
            self._line.append(ticket)
            try:
                self._condition.wait_for(
                    lambda: not self._open or (self._line[0] is ticket and self._ledger.try_reserve(need))
                )
                if not self._open:
                    raise GateClosedError
            finally:
                self._line.remove(ticket)
                self._condition.notify_all()
        try:
            yield
        finally:
            with self._condition:
                self._ledger.release(need)
                self._condition.notify_all()

    def close(self) -> None:
        """Turn away everyone who waits, and everyone who comes."""
        with self._condition:
            self._open = False
            self._condition.notify_all()
