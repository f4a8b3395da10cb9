"""Reference checkpoints of every era in the cached, batched engine, within the tolerances of their README."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch

from tasks.generation import FinishReason
from tests.helpers.engines import FOLDERS, GOLDEN, checkpoint, graph_model, model, run_until_done, torch_model
from tests.helpers.requests import sequence_request
from worker.engine.decoding_model import DecodingModel
from worker.engine.device import Device
from worker.engine.engine import Engine
from worker.engine.torch.model import Model
from worker.engine.vocabulary import Vocabulary

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
    engine = Engine(
        decoding,
        Vocabulary.without_text(config.vocab_size),
        slots=len(cases),
        kv_tokens=2048,
        prefill_chunk_tokens=chunk,
    )
    sequences = [
        engine.add_request(
            sequence_request(
                id=str(number),
                prompt=tuple(case["prompt"]),
                max_tokens=len(case["greedy"]),
                every_id=True,
                ignore_eos=True,
                keep_prompt_logits=True,
            )
        )
        for number, case in enumerate(cases)
    ]
    for sequence, case in zip(sequences, cases, strict=True):
        assert run_until_done(engine, sequence).finish is FinishReason.LENGTH
        torch.testing.assert_close(
            torch.tensor(sequence.prompt_logits), torch.tensor(case["last_logits"]), atol=LOGITS_WITHIN, rtol=0
        )
        if case["min_margin"] > MARGIN_THAT_COUNTS:
            assert sequence.tokens == case["greedy"]
    longest = max(len(case["prompt"]) for case in cases)
    assert longest > min(config.windows) or min(config.windows) == config.sequence_len, "longer than the short windows"
