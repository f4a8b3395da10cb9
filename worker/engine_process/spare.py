"""An engine process that is started before it is known what it will load, so that a load does not wait for torch."""

from __future__ import annotations

from worker.engine_process.spawned import Spawned, spawn

_spares: list[Spawned] = []


def prepare() -> None:
    """Start the spare engine process of this process. Raises OSError."""
    _spares.append(spawn())


def take() -> Spawned | None:
    """The spare engine process, for the one who calls this first. None if there is none, or if it has ended."""
    spare = _spares.pop() if _spares else None
    return spare if spare is not None and spare.process.poll() is None else None
