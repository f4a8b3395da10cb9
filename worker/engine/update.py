"""The progress of one sequence, as the engine reports it. Free of torch: it is sent through the pipe to the worker."""

from __future__ import annotations

from typing import NamedTuple

from tasks.generation import FinishReason


class Update(NamedTuple):
    """The changes of one sequence since its last update."""

    id: str
    #: New tokens.
    tokens: tuple[int, ...]
    #: Why it ended; None while it continues.
    finish: FinishReason | None = None
    #: A description of the error, if `finish` is `FinishReason.ERROR`.
    error: str | None = None
