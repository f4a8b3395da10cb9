"""Loading a checkpoint: its progress, and the limit of its context."""

from __future__ import annotations

from pathlib import Path

import pytest
import structlog
import torch

from tasks.sampling_params import SamplingParams
from tests.helpers.huggingface_folders import GOLDEN_HF, copied
from tests.integration.cluster import TINY
from worker.checkpoints.folder import find
from worker.checkpoints.stored_weights import StoredWeights
from worker.checkpoints.tokenizers import load_tokenizer
from worker.engine.architecture.config import ModelConfig
from worker.engine.device import Device
from worker.engine_process import loading_progress
from worker.engine_process.loading_progress import LoadingProgress
from worker.local import LocalModel
from worker.model_loader import CountedWeights, DescribedModel, describe_model, load_model


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


#: Each token of it takes 1,024 bytes of keys and values.
LLAMA = GOLDEN_HF / "llama"


def described(folder: Path, *, kv_tokens: int, context: int = 0, kv_memory_mb: int = 1) -> DescribedModel:
    """A description on a device whose KV memory has room for so many tokens."""

    class Small(Device):
        def kv_tokens(self, config: ModelConfig, *, slots: int, kv_memory_mb: int = 0) -> int:
            return kv_tokens

    return describe_model(
        find(str(folder), folder.parent),
        None,
        device=Small("cpu"),
        softcap=None,
        weights="exact",
        slots=1,
        kv_memory_mb=kv_memory_mb,
        context=context,
    )


def test_a_context_can_be_limited() -> None:
    whole, limited = described(LLAMA, kv_tokens=600), described(LLAMA, kv_tokens=600, context=100)
    assert (whole.card.context, limited.card.context) == (512, 100)
    assert whole.card.digest != limited.card.digest
    assert described(LLAMA, kv_tokens=600, context=1000).card == whole.card
    assert (whole.checkpoint.warnings, limited.checkpoint.warnings) == ((), ())


def test_a_context_that_does_not_fit_is_limited_with_a_warning(tmp_path: Path) -> None:
    folder = copied("llama", tmp_path / "llama", max_position_embeddings=131072)
    found = described(folder, kv_tokens=5000)
    assert (found.card.context, found.checkpoint.config.sequence_len) == (4096, 4096)
    assert found.card.digest == described(folder, kv_tokens=5000, context=4096).card.digest
    (warning,) = found.checkpoint.warnings
    assert "The context of 131072 tokens is limited to 4096" in warning
    assert "CELERIAC_KV_MEMORY_MB to 128 for the whole context" in warning


def test_a_context_that_was_chosen_or_is_short_is_refused_if_it_does_not_fit() -> None:
    for context, room in ((0, 500), (400, 300)):
        with pytest.raises(ValueError, match=r"less than one context of \d+: set CELERIAC_KV_MEMORY_MB to 1 or more"):
            described(LLAMA, kv_tokens=room, context=context)


@pytest.mark.parametrize("family", ["llama", "gpt2", "mistral"])
def test_a_limited_model_decodes_up_to_its_limit(family: str) -> None:
    model = LocalModel.load(family, GOLDEN_HF, device="cpu", context=40)
    whole = LocalModel.load(family, GOLDEN_HF, device="cpu")
    prompt, sampling = (1, 2, 3, 4), SamplingParams(temperature=0.0, seed=0, max_tokens=100, ignore_eos=True)
    answer = model.generate(prompt, sampling)
    assert len(prompt) + len(answer.token_ids) == 40
    assert answer.token_ids == whole.generate(prompt, sampling).token_ids[:36]


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
