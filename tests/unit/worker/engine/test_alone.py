"""A sequence that is to be alone: nobody else is in its steps, everybody is told before, and nobody's tokens change."""

from __future__ import annotations

import threading
from dataclasses import replace
from multiprocessing import Pipe
from multiprocessing.connection import Connection

import pytest
from torch import Tensor

from tasks.generation import FinishReason
from tests.helpers.engines import Tampered, engine, model, request
from worker.engine.batch import Batch
from worker.engine.engine import DecodingModel
from worker.engine.kv.cache import KvCache
from worker.engine.request import SequenceRequest
from worker.engine_process.main import serve
from worker.engine_process.messages import Abort, AddRequest, Report

#: Padded rows and full attention; grouped queries, windows, value embeddings and smear.
FOLDERS = ["E1b-seed/step_000102", "E7/step_000101"]
TINY = FOLDERS[0]
DEADLINE_S = 30.0


def undisturbed(folder: str, one: SequenceRequest) -> list[int]:
    return engine(model(folder)).add_request(replace(one, alone=0)).wait().tokens


@pytest.mark.parametrize("folder", FOLDERS)
def test_its_mates_wait_with_what_they_have_and_everybody_gets_their_own_tokens(folder: str) -> None:
    rows: list[int] = []

    def count(batch: Batch, logits: Tensor) -> Tensor:
        rows.append(len(batch.outputs))
        return logits

    decoding = engine(Tampered(model(folder), count), prefill_chunk_tokens=16)
    mates = [
        decoding.add_request(request("greedy", (1, 2, 3), 20)),
        decoding.add_request(request("drawn", tuple(range(20)), 20, temperature=0.8, seed=3)),
    ]
    for _ in range(6):
        decoding.step()
    before = [list(mate.tokens) for mate in mates]
    whole = undisturbed(folder, request("whole", tuple(range(30)), 12))
    suspect = decoding.add_request(request("suspect", tuple(range(30)), 12, generated=tuple(whole[:4]), alone=3))
    rows.clear()
    while decoding.alone == "suspect" or len(suspect.tokens) == 4:
        decoding.step()
    assert rows == [0, 0, 1, 1, 1], "a prompt of 34 tokens in chunks of 16, and two more tokens"
    assert len(suspect.tokens) == 4 + 3
    assert [mate.tokens for mate in mates] == before
    decoding.step()
    assert rows[-1] == 3
    while decoding.has_work:
        decoding.step()
    assert suspect.tokens == whole
    for mate in mates:
        assert mate.tokens == undisturbed(folder, mate.request)


def test_time_limits_and_aborts_of_the_others_hold_meanwhile() -> None:
    now = 100.0
    decoding = engine(model(TINY), clock=lambda: now)
    late = decoding.add_request(request("late", max_tokens=40, time_limit_s=5.0))
    unwanted = decoding.add_request(request("unwanted", max_tokens=40))
    decoding.step()
    suspect = decoding.add_request(request("suspect", max_tokens=40, alone=40))
    decoding.step()
    now = 105.0
    decoding.abort("unwanted")
    updates = {update.id: update for update in decoding.step().updates}
    assert (updates["late"].finish, updates["unwanted"].finish) == (FinishReason.DEADLINE, FinishReason.CANCELLED)
    assert (len(late.tokens), len(unwanted.tokens), len(suspect.tokens)) == (1, 1, 2)
    assert suspect.wait().finish is FinishReason.LENGTH
    decoding.check_idle()


def test_one_that_ends_early_makes_way() -> None:
    decoding = engine(model(TINY))
    mate = decoding.add_request(request("mate", max_tokens=4))
    decoding.add_request(request("suspect", max_tokens=40, alone=40))
    decoding.step()
    assert mate.tokens == []
    decoding.abort("suspect")
    assert decoding.alone is None
    assert mate.wait().finish is FinishReason.LENGTH


def test_a_step_tells_what_it_runs_alone_also_what_it_has_just_admitted_or_ended() -> None:
    now = 100.0
    told: list[str | None] = []
    decoding = engine(model(TINY), slots=2, clock=lambda: now)
    decoding.add_request(request("mate", max_tokens=2))
    decoding.add_request(request("other", max_tokens=40))
    decoding.add_request(request("suspect", max_tokens=40, alone=40, time_limit_s=5.0))
    decoding.step(told.append)
    decoding.step(told.append)
    assert decoding.alone is None, "it waits for the row that is free now"
    decoding.step(told.append)
    assert decoding.alone == "suspect"
    now = 105.0
    decoding.step(told.append)
    assert told == [None, None, "suspect", None]


class Overheard:
    """A model, and what was told through a pipe when each of its steps began."""

    def __init__(self, decoding: DecodingModel, pipe: Connection) -> None:
        self._decoding = decoding
        self._pipe = pipe
        self.config = decoding.config
        self.device = decoding.device
        self.reads_beyond = decoding.reads_beyond
        self.reports: list[Report] = []
        #: What the newest report said would run alone, and how many sequences then did run.
        self.steps: list[tuple[str | None, int]] = []

    def hear(self) -> None:
        while self._pipe.poll():
            self.reports.append(self._pipe.recv())

    def forward(self, batch: Batch, cache: KvCache) -> Tensor:
        self.hear()
        self.steps.append((self.reports[-1].suspect if self.reports else None, len(batch.outputs)))
        return self._decoding.forward(batch, cache)


class Served:
    """An engine that is served in a thread."""

    def __init__(self) -> None:
        self.ours, theirs = Pipe()
        self.model = Overheard(model(TINY), self.ours)
        self._engine = engine(self.model)
        self._pipe = theirs
        self._thread = threading.Thread(target=self._serve)

    def run(self) -> None:
        """Serve what was sent until it is done."""
        self._thread.start()
        self._thread.join(DEADLINE_S)
        assert not self._thread.is_alive()

    def _serve(self) -> None:
        with pytest.raises(DoneError):
            serve(Ending(self._pipe), self._engine)  # type: ignore[arg-type]
        self.model.hear()


class DoneError(Exception):
    """Nothing is left to do."""


class Ending:
    """A pipe that ends when the engine would wait."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe
        self.recv, self.send = pipe.recv, pipe.send

    def poll(self, timeout: float) -> bool:
        if timeout and not self._pipe.poll():
            raise DoneError
        return self._pipe.poll()


def test_the_celery_side_knows_before_each_step_what_it_runs_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.engine_process.main.REPORT_EVERY_S", 0.0)
    served = Served()
    served.ours.send(AddRequest(request("mate", max_tokens=4)))
    served.ours.send(AddRequest(request("suspect", max_tokens=6, alone=3)))
    served.run()
    assert served.model.steps == [("suspect", 1)] * 3 + [(None, 2)] * 3 + [(None, 1)]
    assert served.model.reports[0].updates == ()
    assert served.model.reports[-1].suspect is None
    assert len(served.model.reports) == 1 + 7, "where nothing changes no message of its own is sent"


def test_short_steps_are_reported_together_but_for_first_tokens_and_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.engine_process.main.REPORT_EVERY_S", DEADLINE_S)
    served = Served()
    served.ours.send(AddRequest(request("long", max_tokens=9)))
    served.ours.send(AddRequest(request("short", max_tokens=4)))
    served.run()
    told = [{update.id: len(update.tokens) for update in report.updates} for report in served.model.reports]
    assert told == [{"long": 1, "short": 1}, {"long": 3, "short": 3}, {"long": 5}]


def test_a_step_that_takes_long_is_reported_when_it_ends() -> None:
    now = 100.0

    def slow(_: Batch, logits: Tensor) -> Tensor:
        nonlocal now
        now += 1.0
        return logits

    decoding = engine(Tampered(model(TINY), slow), clock=lambda: now)
    decoding.add_request(request("a", max_tokens=9))
    decoding.step()
    for _ in range(3):
        # It begins within the time for which tokens would be held, and ends behind it.
        step = decoding.step(hold_until=now + 0.5)
        assert not step.held
        assert [len(update.tokens) for update in step.updates] == [1]
    assert decoding.step(hold_until=now + 1.5).held
    assert [len(update.tokens) for update in decoding.step().updates] == [2]


def test_a_suspect_that_is_gone_before_its_step_is_not_named_any_more() -> None:
    served = Served()
    served.ours.send(AddRequest(request("suspect", max_tokens=6, alone=3)))
    served.ours.send(AddRequest(request("mate", max_tokens=2)))
    served.ours.send(Abort("suspect"))
    served.run()
    assert served.model.steps == [(None, 1)] * 2
