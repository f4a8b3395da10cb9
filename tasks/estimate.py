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
class FinishEstimate:
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
    finish: FinishEstimate | None
    #: Seconds until it is over, before they are corrected by how well that was told of late.
    uncorrected_s: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueLoad:
    """What a checkpoint's queue and its workers do at a moment."""

    #: Jobs that wait, and tokens that they may generate together.
    waiting: int
    waiting_tokens: int
    #: Jobs that run.
    running: int
    #: Jobs that the live workers run at once.
    slots: int
    #: Seconds that a job ran until its first token, of late; None before any job was over.
    first_token_s: float | None
    #: Seconds for each further token.
    s_per_token: float
    #: Part of `max_tokens` that jobs generated.
    share: float
    #: Real over estimated duration of recent jobs.
    accuracy: tuple[float, ...]

    def estimate(self, *, position: int | None, tokens_left: int) -> Estimate:
        """For a job with `position` others ahead of it (None: it runs) that may generate `tokens_left` more."""
        ahead = 0 if position is None else position
        tokens_ahead = round(ahead * self._tokens_each(tokens_left) * self.share)
        if self.first_token_s is None or self.slots == 0:
            return Estimate(tokens_ahead, None, None, None)
        start_s = 0.0
        if position is not None:
            departures = max(0, ahead + self.running - self.slots + 1)
            start_s = departures * self._run_s(self._tokens_each(tokens_left), self.first_token_s) / self.slots
        run_s = self._run_s(tokens_left, 0.0 if position is None else self.first_token_s)
        finish_s = start_s + run_s
        likely = FinishEstimate(finish_s * self._factor(0.5), finish_s * self._factor(0.9))
        return Estimate(tokens_ahead, start_s, likely, finish_s)

    def departure_s(self, departures: int) -> float | None:
        """Seconds until so many jobs that wait now will have been started; None where that cannot be told."""
        if self.first_token_s is None or self.slots == 0 or self.waiting == 0:
            return None
        return departures * self._run_s(self._tokens_each(0), self.first_token_s) / self.slots

    def _tokens_each(self, otherwise: int) -> float:
        """Tokens that a waiting job may generate, on average; `otherwise` where none waits."""
        return self.waiting_tokens / self.waiting if self.waiting else float(otherwise)

    def _run_s(self, tokens: float, first_token_s: float) -> float:
        """How long a job runs that may generate so many tokens."""
        return first_token_s + tokens * self.share * self.s_per_token

    def _factor(self, part: float) -> float:
        """By how much `part` of the recent jobs took longer than estimated, at most."""
        if len(self.accuracy) < ENOUGH_JOBS:
            return UNKNOWN_P50 if part <= 0.5 else UNKNOWN_P90
        return quantile(self.accuracy, part)


def quantile(values: Sequence[float], part: float) -> float:
    """The value below which `part` of the values lie: the nearest rank. `values` must not be empty."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))]
