"""Estimates of how long a job will take, from the load of its queue and from the averages of recent jobs.

A running job holds one slot of a live worker. While all slots are taken, a waiting job starts when a slot becomes free
(a departure). There are `slots` departures within the duration of an average job. The job with `n` others ahead of it
starts at departure number `n + 1`. The number of tokens of a job and the time per token are those of recent jobs.

A checkpoint that a switching worker offers and has not loaded has no slots yet. Then all of this begins after the load.
The time is not known for which the worker still serves other checkpoints, so it does not count.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

#: Smallest number of recent jobs from which the accuracy of estimates is measured.
ENOUGH_JOBS = 10
#: Ratios of real to estimated duration that are assumed with fewer jobs.
UNKNOWN_P50 = 1.0
UNKNOWN_P90 = 2.0


@dataclass(frozen=True, slots=True)
class FinishEstimate:
    """When a job will end, in seconds from now: 50 % and 90 % of such jobs end by then."""

    p50: float
    p90: float


@dataclass(frozen=True, slots=True)
class Estimate:
    """The estimate for one job. Times are in seconds from now.

    They are None if no estimate is possible: no job has succeeded recently, or no live worker takes jobs.
    """

    #: Number of tokens that the jobs ahead will probably generate.
    tokens_ahead: int
    #: When the job starts.
    start_s: float | None
    finish: FinishEstimate | None
    #: When the job ends, without the correction by the accuracy of recent estimates.
    uncorrected_s: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueLoad:
    """A snapshot of a checkpoint's queue and workers, with averages of recent jobs."""

    #: Number of waiting jobs, and of the tokens that they may generate together.
    waiting: int
    waiting_tokens: int
    #: Number of running jobs.
    running: int
    #: Number of jobs that the live workers can run at once, or the worker that will load the checkpoint.
    slots: int
    #: Seconds until a worker will have loaded the checkpoint; None if a worker takes its jobs, or if none offers it.
    load_s: float | None = None
    #: Seconds from a job's start to its first token; None if no job has succeeded recently.
    first_token_s: float | None
    #: Seconds for each further token.
    s_per_token: float
    #: Part of `max_tokens` that a job generates.
    share: float
    #: Ratios of real to estimated duration of recent jobs.
    accuracy: tuple[float, ...]

    def estimate(self, *, position: int | None, tokens_left: int) -> Estimate:
        """The estimate for a job that may generate `tokens_left` more tokens. `position` is None if the job runs."""
        ahead = 0 if position is None else position
        tokens_ahead = round(ahead * self._mean_tokens(tokens_left) * self.share)
        if self.slots == 0:
            return Estimate(tokens_ahead, None, None, None)
        departures = max(0, ahead + self.running - self.slots + 1)
        load_s = self.load_s or 0.0
        if self.first_token_s is None:
            # Only how long a load takes is known.
            start_s = None if self.load_s is None or position is None or departures else load_s
            return Estimate(tokens_ahead, start_s, None, None)
        start_s = 0.0
        if position is not None:
            mean_s = self._run_s(self._mean_tokens(tokens_left), self.first_token_s)
            start_s = load_s + departures * mean_s / self.slots
        run_s = self._run_s(tokens_left, 0.0 if position is None else self.first_token_s)
        finish_s = start_s + run_s
        finish = FinishEstimate(finish_s * self._correction(0.5), finish_s * self._correction(0.9))
        return Estimate(tokens_ahead, start_s, finish, finish_s)

    def departure_s(self, departures: int) -> float | None:
        """Seconds until this number of waiting jobs has started; None if no estimate is possible or no job waits."""
        if self.first_token_s is None or self.slots == 0 or self.waiting == 0:
            return None
        return (self.load_s or 0.0) + departures * self._run_s(self._mean_tokens(0), self.first_token_s) / self.slots

    def _mean_tokens(self, default: int) -> float:
        """Mean number of tokens that a waiting job may generate; `default` if no job waits."""
        return self.waiting_tokens / self.waiting if self.waiting else float(default)

    def _run_s(self, tokens: float, first_token_s: float) -> float:
        """Running time of a job that may generate `tokens` tokens, in seconds."""
        return first_token_s + tokens * self.share * self.s_per_token

    def _correction(self, part: float) -> float:
        """The ratio of real to estimated duration that `part` of the recent jobs did not exceed."""
        if len(self.accuracy) < ENOUGH_JOBS:
            return UNKNOWN_P50 if part <= 0.5 else UNKNOWN_P90
        return quantile(self.accuracy, part)


def quantile(values: Sequence[float], part: float) -> float:
    """The nearest-rank quantile: `part` of the values are smaller. `values` must not be empty."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))]
