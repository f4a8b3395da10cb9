"""How long a job will take: what the queue was seen to do, applied to what waits in it. Plain arithmetic.

A job holds one of the slots of the live workers. While all are taken, the next one starts when one becomes free, and
that happens `slots` times within the duration of an average job. The job that waits behind `n` others starts at the
`n + 1`st of these times. How many tokens a job will have, and how long each takes, is what recent jobs had.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

#: So many jobs tell how good the estimates are; with fewer, the factors below stand for their accuracy.
ENOUGH_JOBS = 10
UNKNOWN_P50 = 1.0
UNKNOWN_P90 = 2.0


@dataclass(frozen=True, slots=True)
class Finish:
    """When a job will be over, in seconds from now: half of the jobs, and nine of ten, take no longer."""

    p50: float
    p90: float


@dataclass(frozen=True, slots=True)
class Estimate:
    """What can be told of one job."""

    #: Tokens that the jobs ahead of it will probably generate.
    tokens_ahead: int
    #: Seconds until it starts, and until it is over; None where nothing is known yet, or nobody serves.
    start_s: float | None
    finish: Finish | None
    #: Seconds until it is over, before they are corrected by how well that was told of late.
    uncorrected_s: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What a checkpoint's queue and its workers do at a moment."""

    #: Jobs that wait, and tokens that they may generate together.
    waiting: int
    waiting_tokens: int
    #: Jobs that run.
    running: int
    #: Jobs that the live workers run at once.
    slots: int
    #: Seconds for each token of a running job, of late; None before the first job was over.
    s_per_token: float | None
    #: Part of `max_tokens` that jobs generated, of late.
    share: float | None
    #: Real over estimated duration of recent jobs.
    accuracy: tuple[float, ...]

    def estimate(self, *, position: int | None, tokens_left: int) -> Estimate:
        """For a job with `position` others ahead of it (None: it runs) that may generate `tokens_left` more."""
        ahead = 0 if position is None else position
        each = self.waiting_tokens / self.waiting if self.waiting else float(tokens_left)
        share = 1.0 if self.share is None else self.share
        tokens_ahead = round(ahead * each * share)
        if self.s_per_token is None or self.slots == 0:
            return Estimate(tokens_ahead, None, None, None)
        departures = 0 if position is None else max(0, ahead + self.running - self.slots + 1)
        start_s = departures * each * share * self.s_per_token / self.slots
        finish_s = start_s + tokens_left * share * self.s_per_token
        likely = Finish(finish_s * self._factor(0.5), finish_s * self._factor(0.9))
        return Estimate(tokens_ahead, start_s, likely, finish_s)

    def departure_s(self, departures: int = 1) -> float | None:
        """Seconds until so many jobs that wait now will have started; None where that cannot be told."""
        if self.s_per_token is None or self.slots == 0 or self.waiting == 0:
            return None
        share = 1.0 if self.share is None else self.share
        return departures * self.waiting_tokens / self.waiting * share * self.s_per_token / self.slots

    def _factor(self, part: float) -> float:
        """By how much `part` of the recent jobs took longer than estimated, at most."""
        if len(self.accuracy) < ENOUGH_JOBS:
            return UNKNOWN_P50 if part <= 0.5 else UNKNOWN_P90
        return quantile(self.accuracy, part)


def quantile(values: Sequence[float], part: float) -> float:
    """The value below which `part` of the values lie: the nearest rank. `values` must not be empty."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))]
