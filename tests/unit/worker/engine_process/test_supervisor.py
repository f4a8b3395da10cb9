"""The supervisor before engines that die when the test wants: whose fault it was, and when it gives up."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.fake_worker import CARD
from worker.checkpoints.folder import find
from worker.engine_process.messages import Ready, Report, Start
from worker.engine_process.restart_budget import WITHIN_S, Deaths
from worker.engine_process.supervisor import EngineSupervisor

TINY = Path(__file__).parents[3] / "fixtures" / "golden" / "E1b-seed" / "step_000102"


class Client:
    """An engine that loads at once and does nothing."""

    pid = 1

    def __init__(self, start: Start, *, on_report: Callable[[Report], None], on_death: Callable[[int], None]) -> None:
        self.report, self.die = on_report, on_death

    def launch(self) -> None: ...

    def listen(self) -> None: ...

    def wait_ready(self, *, timeout_s: float, should_stop: Callable[[], bool]) -> Ready:
        return Ready(card=CARD, device="cpu", kv_tokens=1000, load_s=0.0)


class World:
    """A supervisor, the engines that it had, and what it told."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.engines: list[Client] = []
        self.culprits: list[str | None] = []
        self.gave_up: list[str] = []
        monkeypatch.setattr("worker.engine_process.supervisor.EngineClient", self._engine)
        self.supervisor = EngineSupervisor(
            Start(
                folder=find(str(TINY), TINY.parent),
                slots=4,
                kv_memory_mb=0,
                prefill_chunk_tokens=64,
                device="cpu",
                threads=1,
                softcap=None,
                weights="exact",
            ),
            load_timeout_s=1.0,
            on_updates=lambda _: None,
            on_death=self.culprits.append,
            on_give_up=self.gave_up.append,
        )
        self.supervisor.start(should_stop=lambda: False)

    def tell(self, alone: str | None) -> None:
        """What the engine says that it runs alone in the next step."""
        self.engines[-1].report(Report(updates=(), alone=alone, running=1, waiting=0, kv_tokens_free=0))

    def die(self) -> None:
        """The engine's end."""
        self.engines[-1].die(-9)

    def _engine(self, *args: Any, **fields: Any) -> Client:
        self.engines.append(Client(*args, **fields))
        return self.engines[-1]


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    return World(monkeypatch)


def test_a_death_is_put_down_to_what_ran_alone_and_is_not_held_against_the_next_engine(world: World) -> None:
    world.die()
    world.tell("job_1/2")
    world.die()
    world.die()
    assert world.culprits == [None, "job_1/2", None]


def test_a_sequence_that_is_not_alone_any_more_is_not_to_blame(world: World) -> None:
    world.tell("job_1/2")
    world.tell(None)
    world.die()
    assert world.culprits == [None]


def test_a_job_that_kills_three_engines_does_not_end_the_worker(world: World) -> None:
    world.die()
    for attempt in (2, 3):
        world.tell(f"job_1/{attempt}")
        world.die()
    assert world.gave_up == []
    assert len(world.engines) == 4, "each dead engine was replaced"


def test_an_engine_that_dies_with_one_job_after_the_other_ends_the_worker(world: World) -> None:
    for number in range(3):
        world.tell(f"job_{number}/2")
        assert world.gave_up == []
        world.die()
    assert len(world.gave_up) == 1
    assert "died 3 times within 60 s, last by signal 9" in world.gave_up[0]
    assert len(world.engines) == 3


def test_deaths_without_a_culprit_count_each() -> None:
    deaths = Deaths()
    assert [deaths.add(None) for _ in range(3)] == [False, False, True]


def test_deaths_of_one_job_count_once_beside_the_others() -> None:
    deaths = Deaths()
    assert [deaths.add(job) for job in (None, "a", "a", "a", "b")] == [False, False, False, False, True]
    assert deaths.count == 5


def test_deaths_are_forgotten_after_a_minute() -> None:
    now = 0.0
    deaths = Deaths(clock=lambda: now)
    for _ in range(10):
        assert not deaths.add(None)
        now += WITHIN_S / 2 + 1
