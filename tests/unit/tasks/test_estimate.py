"""Estimates: how long a job waits and runs, and how exact that is."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tasks.estimate import ENOUGH_JOBS, UNKNOWN_P90, Estimate, FinishEstimate, QueueLoad, quantile

#: Four slots, all taken, and ten waiting jobs of 100 tokens. Each job runs for 1 s + 50 tokens of 0.1 s = 6 s.
BUSY = QueueLoad(
    waiting=10,
    waiting_tokens=1000,
    running=4,
    slots=4,
    first_token_s=1.0,
    s_per_token=0.1,
    share=0.5,
    accuracy=(),
)


def test_a_job_starts_when_enough_others_have_ended() -> None:
    # Four jobs end every 6 s. The first waiting job starts at the first end, the next one at the second end, ...
    assert [BUSY.estimate(position=ahead, tokens_left=100).start_s for ahead in range(3)] == [1.5, 3.0, 4.5]
    estimate = BUSY.estimate(position=3, tokens_left=200)
    assert estimate == Estimate(150, 6.0, FinishEstimate(17.0, 17.0 * UNKNOWN_P90), 17.0)


def test_a_job_with_a_free_slot_starts_at_once() -> None:
    idle = replace(BUSY, waiting=1, waiting_tokens=100, running=2)
    assert idle.estimate(position=0, tokens_left=100).start_s == 0.0
    assert idle.estimate(position=1, tokens_left=100).start_s == 0.0
    assert idle.estimate(position=2, tokens_left=100).start_s == 1.5


def test_a_running_job_has_only_its_own_tokens_left() -> None:
    estimate = BUSY.estimate(position=None, tokens_left=40)
    assert (estimate.tokens_ahead, estimate.start_s, estimate.uncorrected_s) == (0, 0.0, 2.0)


def test_there_is_no_estimate_before_the_first_job_ended_or_without_workers() -> None:
    for load in (replace(BUSY, first_token_s=None), replace(BUSY, slots=0)):
        assert load.estimate(position=2, tokens_left=100) == Estimate(100, None, None, None)
        assert load.departure_s(1) is None


def test_the_load_of_a_checkpoint_that_is_not_loaded_comes_first() -> None:
    waiting = replace(BUSY, running=0, load_s=5.0)
    assert [waiting.estimate(position=ahead, tokens_left=100).start_s for ahead in (0, 3, 4)] == [5.0, 5.0, 6.5]
    estimate = waiting.estimate(position=0, tokens_left=100)
    assert estimate == Estimate(0, 5.0, FinishEstimate(11.0, 11.0 * UNKNOWN_P90), 11.0)
    assert waiting.departure_s(2) == 8.0
    # A job that still runs on a worker which gives the checkpoint up waits for no load.
    assert waiting.estimate(position=None, tokens_left=40).start_s == 0.0
    # Before the first job has ended, only the load is known.
    new = replace(waiting, first_token_s=None)
    assert [new.estimate(position=ahead, tokens_left=100).start_s for ahead in (0, 3, 4)] == [5.0, 5.0, None]
    assert new.estimate(position=0, tokens_left=100).finish is None
    assert new.estimate(position=None, tokens_left=100).start_s is None


def test_estimates_are_corrected_by_the_accuracy_of_recent_ones() -> None:
    accuracy = tuple(0.1 * (index + 1) for index in range(ENOUGH_JOBS))
    uncorrected = BUSY.estimate(position=0, tokens_left=100).uncorrected_s
    assert uncorrected == 7.5
    finish = replace(BUSY, accuracy=accuracy).estimate(position=0, tokens_left=100).finish
    assert finish == FinishEstimate(pytest.approx(uncorrected * 0.6), pytest.approx(uncorrected * 1.0))
    few = replace(BUSY, accuracy=accuracy[1:]).estimate(position=0, tokens_left=100).finish
    assert few == FinishEstimate(uncorrected, uncorrected * UNKNOWN_P90)


def test_room_in_the_queue_comes_with_the_next_departure() -> None:
    assert BUSY.departure_s(1) == 1.5
    assert BUSY.departure_s(3) == 4.5
    assert replace(BUSY, waiting=0, waiting_tokens=0).departure_s(1) is None


def test_quantiles_are_values_of_the_list() -> None:
    assert [quantile((3.0, 1.0, 2.0), part) for part in (0.0, 0.5, 0.9, 1.0)] == [1.0, 2.0, 3.0, 3.0]
