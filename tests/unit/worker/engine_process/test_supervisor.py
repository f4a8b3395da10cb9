"""The supervisor, with engines that crash when the test wants: which sequence is the suspect, and when it gives up."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.fake_worker import CARD
from worker.checkpoints.folder import find
from worker.engine_process.exit import EngineExit
from worker.engine_process.messages import Ready, Report, Start, Update
from worker.engine_process.restart_budget import WITHIN_S, RestartBudget
from worker.engine_process.supervisor import EngineSupervisor

TINY = Path(__file__).parents[3] / "fixtures" / "golden" / "E1b-seed" / "step_000102"

KILLED = EngineExit(code=-9)


class Client:
    """An engine that loads at once and does nothing."""

    pid = 1
    #: What it has loaded.
    ready = Ready(card=CARD, device="cpu", kv_tokens=1000, tokenizer_digest="t", load_s=0.0)
    stopped = False

    def __init__(
        self, start: Start, *, on_report: Callable[[Report], None], on_crash: Callable[[EngineExit], None]
    ) -> None:
        self.report, self.crash = on_report, on_crash

    def launch(self) -> None: ...

    def listen(self) -> None: ...

    def wait_ready(self, *, timeout_s: float, should_stop: Callable[[], bool]) -> Ready:
        return self.ready

    def stop(self) -> None:
        self.stopped = True


class World:
    """A supervisor, the engines that it started, and what it reported. This is its listener."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.engines: list[Client] = []
        self.suspects: list[str | None] = []
        self.out_of_memory: list[bool] = []
        self.restarts = 0
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
            on_give_up=self.gave_up.append,
        )
        self.supervisor.start(self, should_stop=lambda: False)

    def engine_decoded(self, updates: Sequence[Update], /) -> None: ...

    def engine_crashed(self, suspect: str | None, /, *, out_of_memory: bool) -> None:
        assert not self.supervisor.available
        self.suspects.append(suspect)
        self.out_of_memory.append(out_of_memory)

    def engine_restarted(self) -> None:
        assert self.supervisor.available
        self.restarts += 1

    def report(self, suspect: str | None) -> None:
        """The engine reports that this sequence runs alone in the next step."""
        self.engines[-1].report(Report(updates=(), suspect=suspect, running=1, waiting=0, kv_tokens_free=0))

    def crash(self, ended: EngineExit = KILLED) -> None:
        """The engine crashes."""
        self.engines[-1].crash(ended)

    def _engine(self, *args: Any, **fields: Any) -> Client:
        self.engines.append(Client(*args, **fields))
        return self.engines[-1]


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    return World(monkeypatch)


def test_the_suspect_of_a_crash_is_the_sequence_that_ran_alone_in_that_engine(world: World) -> None:
    world.crash()
    world.report("job_1/2")
    world.crash()
    world.crash()
    assert world.suspects == [None, "job_1/2", None]


def test_a_sequence_that_no_longer_runs_alone_is_not_a_suspect(world: World) -> None:
    world.report("job_1/2")
    world.report(None)
    world.crash()
    assert world.suspects == [None]


def test_a_job_that_crashes_three_engines_does_not_end_the_worker(world: World) -> None:
    world.crash()
    for attempt in (2, 3):
        world.report(f"job_1/{attempt}")
        world.crash()
    assert world.gave_up == []
    assert len(world.engines) == 4, "each crashed engine was replaced"


def test_an_engine_that_crashes_with_one_job_after_another_ends_the_worker(world: World) -> None:
    for number in range(3):
        world.report(f"job_{number}/2")
        assert world.gave_up == []
        world.crash()
    assert len(world.gave_up) == 1
    assert "crashed 3 times within 60 s, most recently with signal 9, perhaps from" in world.gave_up[0]
    assert len(world.engines) == 3


def test_a_new_engine_takes_requests_until_it_crashes(world: World) -> None:
    assert world.supervisor.available
    world.crash()
    assert world.supervisor.available
    assert world.restarts == 1
    world.supervisor.stop()
    assert not world.supervisor.available


def test_it_is_passed_on_that_an_engine_had_no_memory(world: World) -> None:
    world.crash(EngineExit(code=-9))
    world.crash(EngineExit(code=-9, oom_kill_seen=True))
    assert world.out_of_memory == [False, True]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"card": replace(CARD, digest="e" * 64)}, "files of step_002920 were replaced"),
        ({"tokenizer_digest": "another"}, "files of step_002920 were replaced"),
        ({"kv_tokens": 500}, "KV memory for 500 tokens"),
        ({"device": "cuda"}, "on cuda"),
    ],
)
def test_an_engine_that_loaded_something_else_is_ended_and_so_is_the_worker(
    world: World, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], named: str
) -> None:
    monkeypatch.setattr(Client, "ready", replace(Client.ready, **changes))
    world.crash()
    assert len(world.gave_up) == 1
    assert named in world.gave_up[0]
    assert world.engines[-1].stopped
    assert not world.supervisor.available
    assert world.restarts == 0


def test_an_engine_with_another_loss_in_its_card_is_the_same(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Client, "ready", replace(Client.ready, card=replace(CARD, loss=0.1), load_s=9.0))
    world.crash()
    assert world.gave_up == []


def test_each_crash_without_a_suspect_counts() -> None:
    budget = RestartBudget()
    assert [budget.add(None) for _ in range(3)] == [False, False, True]


def test_all_crashes_of_one_job_count_once() -> None:
    budget = RestartBudget()
    assert [budget.add(job) for job in (None, "a", "a", "a", "b")] == [False, False, False, False, True]
    assert budget.count == 5


def test_crashes_do_not_count_after_a_minute() -> None:
    now = 0.0
    budget = RestartBudget(clock=lambda: now)
    for _ in range(10):
        assert not budget.add(None)
        now += WITHIN_S / 2 + 1
