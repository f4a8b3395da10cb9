"""The progress of loading a checkpoint."""

from __future__ import annotations

import pytest
import structlog
import torch

from tests.integration.cluster import TINY
from worker.checkpoints.folder import find
from worker.checkpoints.stored_weights import StoredWeights
from worker.checkpoints.tokenizers import load_tokenizer
from worker.engine_process import loading_progress
from worker.engine_process.loading_progress import LoadingProgress
from worker.model_loader import CountedWeights, load_model


class Stored(StoredWeights):
    """Weights that are in memory already."""

    def __init__(self, tensors: dict[str, torch.Tensor]) -> None:
        self._tensors = tensors  # type: ignore[assignment]

    def __getitem__(self, name: str) -> torch.Tensor:
        return self.tensors[name]  # type: ignore[return-value]


def test_taken_weights_are_counted_once() -> None:
    calls: list[tuple[int, int]] = []
    weights = CountedWeights(Stored({"a": torch.zeros(2), "b": torch.zeros(3)}), lambda *counts: calls.append(counts))
    for name in ("a", "a", "b", "a"):
        assert weights[name].numel() > 0
    assert calls == [(0, 20), (0, 20), (8, 20), (8, 20), (20, 20)]
    assert (list(weights), len(weights), "a" in weights, "c" in weights) == (["a", "b"], 2, True, False)


def test_loading_a_checkpoint_reports_its_bytes() -> None:
    folder = find(str(TINY), TINY.parent)
    calls: list[tuple[int, int]] = []
    load_model(
        folder,
        load_tokenizer(folder, 32),
        device="cpu",
        threads=1,
        softcap=None,
        weights="exact",
        slots=1,
        kv_memory_mb=0,
        prefill_chunk_tokens=16,
        progress=lambda *counts: calls.append(counts),
    )
    loaded = [count for count, _ in calls]
    total = calls[0][1]
    assert loaded[0] == 0
    assert loaded == sorted(loaded)
    assert total / 2 < loaded[-1] <= total


def test_the_log_gets_a_line_every_few_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(loading_progress.time, "monotonic", lambda: now)
    with structlog.testing.capture_logs() as lines:
        progress = LoadingProgress()
        for step in range(11):
            now = 100.0 + step / 2
            progress.update(step, 10)
    assert [(line["loaded_bytes"], line["total_bytes"], line["elapsed_s"]) for line in lines] == [
        (4, 10, 2.0),
        (8, 10, 4.0),
    ]
