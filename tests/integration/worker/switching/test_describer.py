"""The process that describes checkpoints: what it says equals what a worker publishes, and it may crash."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from bench.processes import is_gone
from tasks.settings import Settings
from tests.integration.cluster import TINY
from tests.integration.stack import CHECKPOINTS, ROOT, until
from worker.checkpoints.folder import find
from worker.engine_process.loading import load_once
from worker.engine_process.messages import start_message
from worker.switching import describer as describer_module
from worker.switching.describer import Describer, DescriberError
from worker.switching.description import Description, Refusal

pytestmark = pytest.mark.slow

SETTINGS = Settings(slots=2, device="cpu")
#: Checkpoints of nanochat with characters and with BPE, and a folder of Hugging Face.
PATHS = (TINY, CHECKPOINTS / "arithmetic_chat", ROOT / "tests" / "fixtures" / "golden-hf" / "llama")


@contextmanager
def closing_describer(settings: Settings) -> Iterator[Describer]:
    """A describer whose process ends in any case."""
    describer = Describer(settings)
    try:
        yield describer
    finally:
        describer.stop()


@pytest.fixture
def describer() -> Iterator[Describer]:
    with closing_describer(SETTINGS) as describer:
        yield describer


@pytest.mark.parametrize("changes", [{}, {"weights": "int8", "compute": "fast", "kv_memory_mb": 64}])
def test_the_card_is_that_of_the_worker_which_loads_the_checkpoint(changes: dict[str, object]) -> None:
    settings = SETTINGS.model_copy(update=changes)
    with closing_describer(settings) as describer:
        assert describer.start().kind == "cpu"
        described = {path: describer.describe(find(str(path), path.parent)) for path in PATHS}
    for path, description in described.items():
        assert isinstance(description, Description)
        loaded = load_once(start_message(settings, find(str(path), path.parent)), lambda *_: None)
        assert description.card == loaded.card
        assert description.needed_bytes > loaded.kv_tokens * loaded.card.kv_bytes_per_token


def test_a_checkpoint_that_cannot_be_served_is_refused_with_the_reason(describer: Describer, tmp_path: Path) -> None:
    folder = find(str(TINY), TINY.parent)
    gone = replace(folder, model_file=tmp_path / "model_000102.pt")
    refused = describer.describe(gone)
    assert isinstance(refused, Refusal)
    assert "No such file" in refused.reason
    # The process goes on.
    assert isinstance(describer.describe(folder), Description)


def test_a_crash_refuses_the_checkpoint_and_the_next_one_has_a_new_process(describer: Describer) -> None:
    folder = find(str(TINY), TINY.parent)
    describer.start()
    pid = describer.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    refused = describer.describe(folder)
    assert isinstance(refused, Refusal)
    assert "ended with code -9" in refused.reason
    assert isinstance(describer.describe(folder), Description)
    assert describer.pid != pid


def test_a_checkpoint_that_takes_too_long_is_refused(describer: Describer, monkeypatch: pytest.MonkeyPatch) -> None:
    describer.start()
    pid = describer.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    monkeypatch.setattr(describer_module, "DESCRIBE_S", 0.1)
    refused = describer.describe(find(str(TINY), TINY.parent))
    assert isinstance(refused, Refusal)
    assert "not described within 0.1 s" in refused.reason
    assert is_gone(pid)


def test_the_process_ends_when_it_is_not_needed(describer: Describer, monkeypatch: pytest.MonkeyPatch) -> None:
    describer.start()
    pid = describer.pid
    assert pid is not None
    describer.rest()
    assert not is_gone(pid)
    monkeypatch.setattr(describer_module, "IDLE_S", 0.0)
    describer.rest()
    until(lambda: is_gone(pid), "the end of the process")


def test_a_device_that_is_not_there_is_said_at_the_start(describer: Describer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CELERIAC_DEVICE", "mps")
    with pytest.raises(DescriberError, match="device 'mps' is not available"):
        describer.start()
