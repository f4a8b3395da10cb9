"""A real engine process, through the Celery side's handle on it."""

from __future__ import annotations

import os
import queue
import shutil
import signal
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tasks.generation import FinishReason
from tasks.sampling_params import SamplingParams
from tests.helpers.requests import changed, sequence_request
from worker.checkpoints.folder import CheckpointFolder, find
from worker.engine_process.client import EngineClient, EngineCrashedError, EngineLoadError
from worker.engine_process.exit import EngineExit
from worker.engine_process.messages import Report, Start, Update
from worker.engine_process.supervisor import EngineSupervisor
from worker.local import LocalModel

TINY = Path(__file__).parents[3] / "fixtures" / "golden" / "E1b-seed" / "step_000102"
#: The process imports torch at its start, which takes long on a busy machine.
LOAD_S = 120.0
DEADLINE_S = 30.0
LONG = sequence_request(id="long", prompt=(1, 2, 3), max_tokens=250, temperature=0.8, seed=7, ignore_eos=True)


def start_of(folder: CheckpointFolder) -> Start:
    return Start(
        folder=folder,
        slots=4,
        kv_memory_mb=0,
        prefill_chunk_tokens=64,
        device="cpu",
        threads=1,
        softcap=None,
        weights="exact",
    )


class Conversation:
    """A client, and what it received from the engine."""

    def __init__(self, start: Start) -> None:
        self.updates: queue.SimpleQueue[Update] = queue.SimpleQueue()
        self.reports: queue.SimpleQueue[Report] = queue.SimpleQueue()
        self.crashes: queue.SimpleQueue[EngineExit] = queue.SimpleQueue()
        self.client = EngineClient(start, on_report=self._on_report, on_crash=self.crashes.put)
        self.client.launch()

    def _on_report(self, report: Report) -> None:
        self.reports.put(report)
        for update in report.updates:
            self.updates.put(update)

    def until_finished(self, sequence_id: str) -> tuple[list[int], Update]:
        """The tokens of a sequence and its last update."""
        tokens: list[int] = []
        while True:
            update = self.updates.get(timeout=DEADLINE_S)
            if update.id == sequence_id:
                tokens += update.tokens
                if update.finish is not None:
                    return tokens, update

    def when_idle(self) -> Report:
        """The next report of an idle engine."""
        while True:
            report = self.reports.get(timeout=DEADLINE_S)
            if not report.running and not report.updates and self.reports.empty():
                return report

    def ready(self) -> Conversation:
        self.client.wait_ready(timeout_s=LOAD_S, should_stop=lambda: False)
        self.client.listen()
        return self


@pytest.fixture(scope="module")
def shared() -> Iterator[Conversation]:
    """A loaded engine."""
    conversation = Conversation(start_of(find(str(TINY), TINY.parent))).ready()
    yield conversation
    conversation.client.stop()


def is_running(pid: int | None) -> bool:
    assert pid is not None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_sequence_gets_the_same_tokens_as_in_process(shared: Conversation) -> None:
    local = LocalModel.load(str(TINY), TINY.parent, threads=1)
    expected = local.generate((1, 2, 3), SamplingParams(max_tokens=40, temperature=0.8, seed=7, ignore_eos=True))
    shared.client.add_request(changed(LONG, id="same", max_tokens=40))
    tokens, last = shared.until_finished("same")
    assert tuple(tokens) == expected.token_ids
    assert last.finish is FinishReason.LENGTH


def test_a_resumed_sequence_reports_only_new_tokens(shared: Conversation) -> None:
    shared.client.add_request(changed(LONG, id="whole", max_tokens=20))
    whole, _ = shared.until_finished("whole")
    shared.client.add_request(changed(LONG, id="rest", max_tokens=20, generated=tuple(whole[:12])))
    rest, _ = shared.until_finished("rest")
    assert rest == whole[12:]


def test_an_aborted_sequence_ends_as_cancelled_and_its_memory_is_free(shared: Conversation) -> None:
    free = shared.when_idle().kv_tokens_free
    shared.client.add_request(changed(LONG, id="aborted"))
    first = shared.updates.get(timeout=DEADLINE_S)
    assert first.id == "aborted"
    shared.client.abort("aborted")
    tokens, last = shared.until_finished("aborted")
    assert last.finish is FinishReason.CANCELLED
    assert len(first.tokens) + len(tokens) < LONG.sampling.max_tokens
    assert shared.when_idle().kv_tokens_free == free


def test_aborting_an_unknown_sequence_does_nothing(shared: Conversation) -> None:
    shared.client.abort("unknown")
    shared.client.add_request(changed(LONG, id="after", max_tokens=3))
    assert shared.until_finished("after")[1].finish is FinishReason.LENGTH


def test_a_request_that_can_never_run_fails_alone(shared: Conversation) -> None:
    shared.client.add_request(changed(LONG, id="other", max_tokens=60))
    shared.client.add_request(changed(LONG, id="impossible", prompt=(1,) * 300))
    _, impossible = shared.until_finished("impossible")
    assert impossible.finish is FinishReason.ERROR
    assert impossible.error is not None
    assert "context" in impossible.error.message
    assert shared.until_finished("other")[1].finish is FinishReason.LENGTH


def test_an_idle_engine_sends_reports(shared: Conversation) -> None:
    shared.when_idle()
    before = shared.client.last_report_at
    shared.when_idle()
    assert shared.client.last_report_at > before


def test_signals_of_a_terminal_or_a_service_manager_do_not_end_the_engine(shared: Conversation) -> None:
    assert shared.client.pid is not None
    os.kill(shared.client.pid, signal.SIGINT)
    os.kill(shared.client.pid, signal.SIGTERM)
    shared.client.add_request(changed(LONG, id="unmoved", max_tokens=5))
    assert shared.until_finished("unmoved")[1].finish is FinishReason.LENGTH
    assert shared.crashes.empty()


def test_a_crash_is_reported_once_with_its_exit_code_and_later_requests_are_refused() -> None:
    conversation = Conversation(start_of(find(str(TINY), TINY.parent))).ready()
    assert conversation.client.pid is not None
    conversation.client.add_request(LONG)
    conversation.updates.get(timeout=DEADLINE_S)
    os.kill(conversation.client.pid, signal.SIGKILL)
    assert conversation.crashes.get(timeout=DEADLINE_S).code == -signal.SIGKILL
    with pytest.raises(EngineCrashedError):
        conversation.client.add_request(changed(LONG, id="late"))
    conversation.client.abort("long")
    conversation.client.stop()
    assert conversation.crashes.empty()


def test_stop_does_not_wait_for_a_step_and_is_not_a_crash() -> None:
    conversation = Conversation(start_of(find(str(TINY), TINY.parent))).ready()
    assert conversation.client.pid is not None
    os.kill(conversation.client.pid, signal.SIGSTOP)
    conversation.client.stop()
    assert not is_running(conversation.client.pid)
    assert conversation.crashes.empty()


def test_a_checkpoint_that_cannot_be_loaded_says_why_and_leaves_no_process(tmp_path: Path) -> None:
    broken = tmp_path / TINY.name
    shutil.copytree(TINY, broken)
    model = broken / "model_000102.pt"
    model.write_bytes(model.read_bytes()[:1000])
    conversation = Conversation(start_of(find(str(broken), tmp_path)))
    with pytest.raises(EngineLoadError, match=r"model_000102\.pt"):
        conversation.ready()
    assert not is_running(conversation.client.pid)


def test_a_process_that_ends_while_it_loads_is_a_load_error() -> None:
    conversation = Conversation(start_of(find(str(TINY), TINY.parent)))
    assert conversation.client.pid is not None
    os.kill(conversation.client.pid, signal.SIGKILL)
    with pytest.raises(EngineLoadError, match="signal 9"):
        conversation.ready()


def test_loading_ends_when_the_worker_stops() -> None:
    conversation = Conversation(start_of(find(str(TINY), TINY.parent)))
    with pytest.raises(EngineLoadError, match="received a signal to stop"):
        conversation.client.wait_ready(timeout_s=LOAD_S, should_stop=lambda: True)
    assert not is_running(conversation.client.pid)


def test_loading_has_a_time_limit() -> None:
    conversation = Conversation(start_of(find(str(TINY), TINY.parent)))
    with pytest.raises(EngineLoadError, match="CELERIAC_LOAD_TIMEOUT_S"):
        conversation.client.wait_ready(timeout_s=0, should_stop=lambda: False)
    assert not is_running(conversation.client.pid)


class Listener:
    """The reports of a supervisor."""

    def __init__(self) -> None:
        self.updates: queue.SimpleQueue[Sequence[Update]] = queue.SimpleQueue()
        self.suspects: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self.restarted = threading.Event()
        self.engine_decoded, self.engine_restarted = self.updates.put, self.restarted.set

    def engine_crashed(self, suspect: str | None, /, *, out_of_memory: bool) -> None:
        self.suspects.put(suspect)


def test_the_supervisor_replaces_a_crashed_engine_and_starts_none_after_its_stop() -> None:
    listener = Listener()
    gave_up: queue.SimpleQueue[str] = queue.SimpleQueue()
    supervisor = EngineSupervisor(start_of(find(str(TINY), TINY.parent)), load_timeout_s=LOAD_S, on_give_up=gave_up.put)
    supervisor.start(listener, should_stop=lambda: False)
    first = supervisor.pid
    assert first is not None
    os.kill(first, signal.SIGKILL)
    assert listener.suspects.get(timeout=DEADLINE_S) is None
    with pytest.raises(EngineCrashedError):
        supervisor.add_request(LONG)
    assert listener.restarted.wait(LOAD_S)
    assert supervisor.available
    assert supervisor.pid != first
    supervisor.add_request(changed(LONG, max_tokens=3))
    assert listener.updates.get(timeout=DEADLINE_S)[0].tokens
    supervisor.stop()
    assert not supervisor.available
    assert gave_up.empty()
