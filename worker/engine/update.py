"""What a step of the engine tells about one sequence. Free of torch: it crosses the pipe to the Celery side."""

from __future__ import annotations

from typing import NamedTuple

from tasks.generation import FinishReason


class Update(NamedTuple):
    """What happened to one sequence in a step."""

    id: str
    #: New tokens.
    tokens: tuple[int, ...]
    #: Why it is over; None while it goes on.
    finish: FinishReason | None = None
    #: What went wrong, with `FinishReason.ERROR`.
    error: str | None = None
