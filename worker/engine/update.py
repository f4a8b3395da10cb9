"""The progress of one sequence, as the engine reports it. Free of torch: it is sent through the pipe to the worker."""

from __future__ import annotations

from typing import NamedTuple

from tasks.generation import FinishReason


class Failure(NamedTuple):
    """Why the engine could not decode a sequence."""

    #: A description of the error, for people.
    message: str
    #: Whether the device or the process had no memory left. The same request may succeed later.
    out_of_memory: bool = False


class Update(NamedTuple):
    """The changes of one sequence since its last update."""

    id: str
    #: New tokens.
    tokens: tuple[int, ...]
    #: Why it ended; None while it continues.
    finish: FinishReason | None = None
    #: Set if `finish` is `FinishReason.ERROR`.
    error: Failure | None = None
