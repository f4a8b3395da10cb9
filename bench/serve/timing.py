"""What one request took, and what many took together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from bench.report import percentile

#: Percentiles that are told of each duration.
SHARES = (0.5, 0.95, 0.99)


@dataclass(frozen=True, slots=True)
class Timing:
    """One request; seconds since it was sent."""

    #: When its first token was there; None where the route tells only the whole.
    first_token_s: float | None
    #: When all of them were.
    end_s: float
    tokens: int

    @property
    def per_token_s(self) -> float | None:
        """Seconds for each token behind the first."""
        if self.first_token_s is None or self.tokens < 2:
            return None
        return (self.end_s - self.first_token_s) / (self.tokens - 1)


def summary(timings: Sequence[Timing], seconds: float) -> dict[str, Any]:
    """The figures of requests that were answered within `seconds` together; durations are in ms."""
    row: dict[str, Any] = {
        "requests_per_s": round(len(timings) / seconds, 1),
        "tokens_per_s": round(sum(timing.tokens for timing in timings) / seconds, 1),
    }
    durations: dict[str, Callable[[Timing], float | None]] = {
        "ttft": lambda timing: timing.first_token_s,
        "tpot": lambda timing: timing.per_token_s,
        "e2e": lambda timing: timing.end_s,
    }
    for name, take in durations.items():
        known = [1000 * value for timing in timings if (value := take(timing)) is not None]
        for share in SHARES:
            row[f"{name}_p{round(100 * share)}_ms"] = round(percentile(known, share), 1) if known else None
    return row
