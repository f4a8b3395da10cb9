"""Suspects: they run alone, each step reports that before it runs, and the tokens of no sequence change."""

from __future__ import annotations

import threading
from dataclasses import replace
from multiprocessing import Pipe
from multiprocessing.connection import Connection

import pytest
from torch import Tensor

from tasks.generation import FinishReason
from tests.helpers.engines import Tampered, decode, engine, model, request, run_until_done
from worker.engine.batch import Batch
from worker.engine.decoding_model import DecodingModel
from worker.engine.kv.cache import KvCache
from worker.engine.request import SequenceRequest
from worker.engine_process.main import serve
from worker.engine_process.messages import Abort, AddRequest, Report

#: Padded rows and full attention; grouped queries, windows, value embeddings and smear.
FOLDERS = ["E1b-seed/step_000102", "E7/step_000101"]
TINY = FOLDERS[0]
DEADLINE_S = 30.0


def undisturbed(folder: str, one: SequenceRequest) -> list[int]:
    return decode(engine(model(folder)), replace(one, alone=0)).tokens


@pytest.mark.parametrize("folder", FOLDERS)
def test_other_sequences_pause_while_a_suspect_runs_and_no_tokens_change(folder: str) -> None:
    rows: list[int] = []

    def count(batch: Batch, logits: Tensor) -> Tensor:
        rows.append(len(batch.outputs))
        return logits

    decoding = engine(Tampered(model(folder), count), prefill_chunk_tokens=16)
    others = [
        decoding.add_request(request("greedy", (1, 2, 3), 20)),
        decoding.add_request(request("drawn", tuple(range(20)), 20, temperature=0.8, seed=3)),
    ]
    for _ in range(6):
        decoding.step()
    before = [list(other.tokens) for other in others]
    whole = undisturbed(folder, request("whole", tuple(range(30)), 12))
    suspect = decoding.add_request(request("suspect", tuple(range(30)), 12, generated=tuple(whole[:4]), alone=3))
    rows.clear()
    while decoding.suspect == "suspect" or len(suspect.tokens) == 4:
        decoding.step()
    assert rows == [0, 0, 1, 1, 1], "a prompt of 34 tokens in chunks of 16, and two more tokens"
    assert len(suspect.tokens) == 4 + 3
    assert [other.tokens for other in others] == before
    decoding.step()
    assert rows[-1] == 3
    while decoding.has_work:
        decoding.step()
    assert suspect.tokens == whole
    for other in others:
        assert other.tokens == undisturbed(folder, other.request)


def test_time_limits_and_aborts_of_paused_sequences_still_work() -> None:
    now = 100.0
    decoding = engine(model(TINY), clock=lambda: now)
    late = decoding.add_request(request("late", max_tokens=40, time_limit_s=5.0))
    aborted = decoding.add_request(request("aborted", max_tokens=40))
    decoding.step()
    suspect = decoding.add_request(request("suspect", max_tokens=40, alone=40))
    decoding.step()
    now = 105.0
    decoding.abort("aborted")
    updates = {update.id: update for update in decoding.step().updates}
    assert (updates["late"].finish, updates["aborted"].finish) == (FinishReason.DEADLINE, FinishReason.CANCELLED)
    assert (len(late.tokens), len(aborted.tokens), len(suspect.tokens)) == (1, 1, 2)
    assert run_until_done(decoding, suspect).finish is FinishReason.LENGTH
    decoding.check_idle()


def test_the_others_continue_after_a_suspect_is_aborted() -> None:
    decoding = engine(model(TINY))
    other = decoding.add_request(request("other", max_tokens=4))
    decoding.add_request(request("suspect", max_tokens=40, alone=40))
    decoding.step()
    assert other.tokens == []
    decoding.abort("suspect")
    assert decoding.suspect is None
    assert run_until_done(decoding, other).finish is FinishReason.LENGTH


def test_before_run_gets_the_suspect_of_the_step_after_admissions_and_ends() -> None:
    now = 100.0
    suspects: list[str | None] = []
    decoding = engine(model(TINY), slots=2, clock=lambda: now)
    decoding.add_request(request("short", max_tokens=2))
    decoding.add_request(request("other", max_tokens=40))
    decoding.add_request(request("suspect", max_tokens=40, alone=40, time_limit_s=5.0))
    decoding.step(suspects.append)
    decoding.step(suspects.append)
    assert decoding.suspect is None, "it waits for the row that has just become free"
    decoding.step(suspects.append)
    assert decoding.suspect == "suspect"
    now = 105.0
    decoding.step(suspects.append)
    assert suspects == [None, None, "suspect", None]


class RecordingModel:
    """A model that reads the reports from a pipe at the start of each step."""

    def __init__(self, decoding: DecodingModel, pipe: Connection) -> None:
        self._decoding = decoding
        self._pipe = pipe
        self.config = decoding.config
        self.device = decoding.device
        self.reads_beyond = decoding.reads_beyond
        self.reports: list[Report] = []
        #: For each step, `suspect` of the newest report, and how many sequences ran.
        self.steps: list[tuple[str | None, int]] = []

    def read_reports(self) -> None:
        while self._pipe.poll():
            self.reports.append(self._pipe.recv())

    def forward(self, batch: Batch, cache: KvCache) -> Tensor:
        self.read_reports()
        self.steps.append((self.reports[-1].suspect if self.reports else None, len(batch.outputs)))
        return self._decoding.forward(batch, cache)


class Served:
    """An engine with the loop of the engine process around it, in a thread."""

    def __init__(self) -> None:
        self.ours, theirs = Pipe()
        self.model = RecordingModel(model(TINY), self.ours)
        self._engine = engine(self.model)
        self._pipe = theirs
        self._thread = threading.Thread(target=self._serve)

    def run(self) -> None:
        """Serve the messages that were sent, until all work is done."""
        self._thread.start()
        self._thread.join(DEADLINE_S)
        assert not self._thread.is_alive()

    def _serve(self) -> None:
        with pytest.raises(DoneError):
            serve(EndingPipe(self._pipe), self._engine)  # type: ignore[arg-type]
        self.model.read_reports()


class DoneError(Exception):
    """All work is done."""


class EndingPipe:
    """A pipe that raises DoneError when the engine would wait for a message."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe
        self.recv, self.send = pipe.recv, pipe.send

    def poll(self, timeout: float) -> bool:
        if timeout and not self._pipe.poll():
            raise DoneError
        return self._pipe.poll()


def test_the_worker_gets_the_suspect_of_a_step_before_the_step_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.engine_process.main.REPORT_EVERY_S", 0.0)
    served = Served()
    served.ours.send(AddRequest(request("other", max_tokens=4)))
    served.ours.send(AddRequest(request("suspect", max_tokens=6, alone=3)))
    served.run()
    assert served.model.steps == [("suspect", 1)] * 3 + [(None, 2)] * 3 + [(None, 1)]
    assert served.model.reports[0].updates == ()
    assert served.model.reports[-1].suspect is None
    assert len(served.model.reports) == 1 + 7, "an extra report is sent only if the suspect changes"


def test_short_steps_are_reported_together_except_first_tokens_and_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.engine_process.main.REPORT_EVERY_S", DEADLINE_S)
    served = Served()
    served.ours.send(AddRequest(request("long", max_tokens=9)))
    served.ours.send(AddRequest(request("short", max_tokens=4)))
    served.run()
    lengths = [{update.id: len(update.tokens) for update in report.updates} for report in served.model.reports]
    assert lengths == [{"long": 1, "short": 1}, {"long": 3, "short": 3}, {"long": 5}]


def test_a_long_step_is_reported_when_it_ends() -> None:
    now = 100.0

    def slow(_: Batch, logits: Tensor) -> Tensor:
        nonlocal now
        now += 1.0
        return logits

    decoding = engine(Tampered(model(TINY), slow), clock=lambda: now)
    decoding.add_request(request("a", max_tokens=9))
    decoding.step()
    for _ in range(3):
        # The step starts before `hold_until` and ends after it.
        step = decoding.step(hold_until=now + 0.5)
        assert not step.held
        assert [len(update.tokens) for update in step.updates] == [1]
    assert decoding.step(hold_until=now + 1.5).held
    assert [len(update.tokens) for update in decoding.step().updates] == [2]


def test_an_aborted_suspect_is_not_reported_as_running_alone() -> None:
    served = Served()
    served.ours.send(AddRequest(request("suspect", max_tokens=6, alone=3)))
    served.ours.send(AddRequest(request("other", max_tokens=2)))
    served.ours.send(Abort("suspect"))
    served.run()
    assert served.model.steps == [(None, 1)] * 2
