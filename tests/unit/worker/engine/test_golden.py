"""Reference checkpoints of every era in the cached, batched engine, within the tolerances of their README."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch

from tests.helpers.engines import FOLDERS, GOLDEN, checkpoint, graph_model, model, torch_model
from tests.helpers.golden_cases import decode_cases
from worker.engine.decoding_model import DecodingModel
from worker.engine.device import Device
from worker.engine.torch.model import Model

#: The tolerance of the README, and the margin below which a greedy token may differ.
LOGITS_WITHIN = 2e-3
MARGIN_THAT_COUNTS = 1e-2


def test_every_era_has_a_checkpoint() -> None:
    assert {folder.split("/")[0] for folder in FOLDERS} == {
        *("E1a", "E1b", "E1b-seed", "E2", "E3", "E4", "E5", "E6", "E7")
    }


@pytest.mark.parametrize("chunk", [1, 7, 64, 1024])
@pytest.mark.parametrize("folder", FOLDERS)
@pytest.mark.parametrize("load", [model, torch_model, graph_model])
def test_an_era_agrees_with_nanochat(load: Callable[[str], DecodingModel], folder: str, chunk: int) -> None:
    assert_agreement(folder, load(folder), chunk)


@pytest.mark.parametrize("folder", ["E1b-seed/step_000102", "E7/step_000102"])
def test_packed_matrices_agree_too(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The matrices of these checkpoints are too small to be packed by default."""
    monkeypatch.setattr("worker.engine.torch.linear.PACK_FROM_ELEMENTS", 1)
    found = checkpoint(folder)
    assert_agreement(folder, Model.load(found.config, found.weights, Device("cpu")), chunk=64)


def assert_agreement(folder: str, decoding: DecodingModel, chunk: int) -> None:
    """Compare all cases of a checkpoint, in one batch."""
    expected: dict[str, Any] = json.loads((GOLDEN / folder / "expected.json").read_text())
    cases = expected["cases"]
    config = decoding.config
    for (sequence, _), case in zip(decode_cases(decoding, cases, chunk), cases, strict=True):
        torch.testing.assert_close(
            torch.tensor(sequence.prompt_logits), torch.tensor(case["last_logits"]), atol=LOGITS_WITHIN, rtol=0
        )
        if case["min_margin"] > MARGIN_THAT_COUNTS:
            assert sequence.tokens == case["greedy"]
    longest = max(len(case["prompt"]) for case in cases)
    assert longest > min(config.windows) or min(config.windows) == config.sequence_len, "longer than the short windows"
