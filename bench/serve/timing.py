"""The times of one request, and the figures of many requests."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tasks.estimate import quantile

#: Percentiles of each duration in a row of the report, as shares.
SHARES = (0.5, 0.95, 0.99)


@dataclass(frozen=True, slots=True)
class Timing:
    """The times of one request, in seconds since it was sent."""

    #: Arrival of the first token; None for a route that returns only the whole text.
    first_token_s: float | None
    #: Arrival of the whole answer.
    end_s: float
    tokens: int

    @property
    def per_token_s(self) -> float | None:
        """Seconds for each token after the first."""
        if self.first_token_s is None or self.tokens < 2:
            return None
        return (self.end_s - self.first_token_s) / (self.tokens - 1)


def summary(timings: Sequence[Timing], seconds: float) -> dict[str, Any]:
    """Return the figures of requests that took `seconds` in all. Durations in the row are in ms."""
    row: dict[str, Any] = {
        "requests_per_s": round(len(timings) / seconds, 1),
        "tokens_per_s": round(sum(timing.tokens for timing in timings) / seconds, 1),
    }
    durations: dict[str, Callable[[Timing], float | None]] = {
        "ttft": lambda timing: timing.first_token_s,
        "tpot": lambda timing: timing.per_token_s,
        "e2e": lambda timing: timing.end_s,
    }
    for name, duration in durations.items():
        known = [1000 * value for timing in timings if (value := duration(timing)) is not None]
        for share in SHARES:
            row[f"{name}_p{round(100 * share)}_ms"] = round(quantile(known, share), 1) if known else None
    return row
