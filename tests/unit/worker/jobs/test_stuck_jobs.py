"""Messages that are held without a thread are found, and the normal coming and going of messages is not."""

from __future__ import annotations

from worker.jobs.stuck_jobs import STUCK_AFTER_S, STUCK_CHECKS, StuckJobs


class World:
    """The held messages, the jobs with a thread, and a clock."""

    def __init__(self) -> None:
        self.held: list[str] = []
        self.running: set[str] = set()
        self.now = 0.0
        self.stuck = StuckJobs(lambda: self.held, lambda: self.running, clock=lambda: self.now)

    def find(self, after_s: float) -> list[str]:
        self.now += after_s
        return self.stuck.find()


def test_a_message_that_no_thread_runs_is_found_after_a_while() -> None:
    world = World()
    world.held, world.running = ["a", "b"], {"b"}
    for _ in range(STUCK_CHECKS):
        assert world.find((STUCK_AFTER_S - 1) / STUCK_CHECKS) == []
    assert world.find(STUCK_AFTER_S) == ["a"]


def test_a_process_that_was_paused_finds_nothing_at_once() -> None:
    world = World()
    world.held = ["a"]
    assert world.find(0) == []
    assert world.find(10 * STUCK_AFTER_S) == []


def test_messages_that_come_and_go_are_not_found() -> None:
    world = World()
    for number in range(100):
        world.held = [f"{number}", "same"]
        # Seen without a thread in every second call: it is between two deliveries.
        world.running = {"same"} if number % 2 else set()
        assert world.find(STUCK_AFTER_S / 2) == []
