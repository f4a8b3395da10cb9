"""The thread tuner finds the fastest sharing, keeps it through disturbances, and finds it again after a change."""

from __future__ import annotations

import pytest

from worker.engine.native.thread_tuner import (
    FIRST_PAUSE_OF_LONG_STEPS,
    LONG_STEP_S,
    LONGEST_PAUSE,
    Sharing,
    ThreadTuner,
    neighbours,
)


class Machine:
    """Runs steps of 8 positions, each of which takes a given time for each number of threads."""

    def __init__(self, seconds: dict[int, float]) -> None:
        self.seconds = seconds
        self.tuner = ThreadTuner(max(seconds), fixed=False)

    def run(self, steps: int) -> list[int]:
        """Run some steps. Returns the number of threads of each."""
        used = []
        for _ in range(steps):
            sharing = self.tuner.choose(8)
            used.append(sharing.threads)
            self.tuner.record(8, sharing, self.seconds[sharing.threads])
        return used


def test_the_fastest_number_of_threads_is_used_also_after_a_change() -> None:
    machine = Machine({1: 3e-3, 2: 2e-3})
    assert set(machine.run(5)) == {1, 2}
    machine.run(2 * LONGEST_PAUSE)
    assert machine.run(LONGEST_PAUSE).count(2) >= LONGEST_PAUSE - 1
    machine.seconds[2] = 9e-3
    assert machine.run(10)[-5:].count(1) >= 3, "the tuner leaves a sharing at once when it gets slower"
    machine.run(2 * LONGEST_PAUSE)
    assert machine.run(LONGEST_PAUSE).count(1) >= LONGEST_PAUSE - 1
    machine.seconds[2] = 2e-3
    machine.run(3 * LONGEST_PAUSE)
    assert machine.run(LONGEST_PAUSE).count(2) >= LONGEST_PAUSE - 10, "the tuner finds it again when it gets faster"


def test_one_disturbed_step_changes_nothing() -> None:
    machine = Machine({1: 3e-3, 2: 2e-3})
    machine.run(2 * LONGEST_PAUSE)
    machine.seconds[2] = 90e-3
    machine.run(1)
    machine.seconds[2] = 2e-3
    assert machine.run(LONGEST_PAUSE).count(2) >= LONGEST_PAUSE - 1


def test_the_first_pause_is_longer_for_long_steps() -> None:
    machine = Machine({1: 30 * LONG_STEP_S, 2: 20 * LONG_STEP_S})
    assert machine.run(FIRST_PAUSE_OF_LONG_STEPS) == [2] * FIRST_PAUSE_OF_LONG_STEPS
    machine.seconds[2] = 90 * LONG_STEP_S
    assert machine.run(3 * FIRST_PAUSE_OF_LONG_STEPS)[-2:] == [1, 1]


def test_more_threads_must_be_worth_it() -> None:
    machine = Machine({1: 1.1e-3, 2: 1e-3})
    machine.run(2 * LONGEST_PAUSE)
    assert machine.run(LONGEST_PAUSE).count(1) >= LONGEST_PAUSE - 1


def test_the_fastest_of_many_numbers_is_reached_step_by_step() -> None:
    machine = Machine({8: 1e-3, 4: 1.5e-3, 2: 2.5e-3, 1: 4e-3})
    machine.run(20)
    assert machine.run(LONGEST_PAUSE).count(8) > LONGEST_PAUSE - 10
    machine.seconds.update({8: 9e-3, 4: 9e-3})
    machine.run(4 * LONGEST_PAUSE)
    assert machine.run(LONGEST_PAUSE).count(2) > LONGEST_PAUSE - 5


@pytest.mark.parametrize(
    ("sharing", "tried"),
    [
        (Sharing(1), [Sharing(2), Sharing(2, by_rows=True)]),
        (Sharing(2), [Sharing(1), Sharing(2, by_rows=True), Sharing(5)]),
        (Sharing(2, by_rows=True), [Sharing(1), Sharing(2), Sharing(5)]),
        (Sharing(5), [Sharing(2), Sharing(2, by_rows=True), Sharing(11)]),
        (Sharing(11), [Sharing(5)]),
    ],
)
def test_trials_use_as_many_threads_or_the_next_lower_or_the_next_higher_number(
    sharing: Sharing, tried: list[Sharing]
) -> None:
    every = [Sharing(1), Sharing(2), Sharing(2, by_rows=True), Sharing(5), Sharing(11)]
    assert neighbours(sharing, every) == tried


def test_trials_take_turns() -> None:
    tuner = ThreadTuner(2, fixed=False)
    trials = []
    for _ in range(8 * LONGEST_PAUSE):
        sharing = tuner.choose(8, longest=1)
        tuner.record(8, sharing, {1: 3e-3, 2: 2e-3}[sharing.threads] + sharing.by_rows * 1e-3, longest=1)
        if sharing != Sharing(2):
            trials.append(sharing)
    turn = [Sharing(1), Sharing(2, by_rows=True)]
    assert trials[1:5] in (turn * 2, turn[::-1] * 2)


@pytest.mark.parametrize("positions", [1, 7, 8, 9, 64])
def test_a_step_is_shared_by_rows_only_among_as_many_threads_as_it_has_equal_shares(positions: int) -> None:
    tuner = ThreadTuner(8, fixed=False)
    used = set()
    for _ in range(8 * LONGEST_PAUSE):
        sharing = tuner.choose(positions, longest=3)
        used.add(sharing)
        tuner.record(positions, sharing, 1e-3 / sharing.threads**2 / (1 + sharing.by_rows), longest=3)
    assert {sharing.threads for sharing in used if sharing.by_rows} <= {
        count for count in (2, 4, 8) if 3 * count <= positions
    }
    assert Sharing(8, by_rows=True) in used or positions < 3 * 8


def test_a_fixed_number_of_threads_is_kept() -> None:
    tuner = ThreadTuner(3, fixed=True)
    for _ in range(20):
        assert tuner.choose(1) == Sharing(3)
        tuner.record(1, Sharing(3), 1.0)
    assert ThreadTuner(5, fixed=False).thread_counts == [5, 2, 1]
