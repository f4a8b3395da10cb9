"""Reference checkpoints of every era: they are recognized, and the slow reference forward pass agrees with nanochat."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from tests.helpers import reference
from tests.helpers.engines import FOLDERS, GOLDEN, checkpoint
from worker.checkpoints.folder import find
from worker.checkpoints.formats import load

#: Agreement as the README of the reference checkpoints defines it.
LOGITS_WITHIN = 2e-3
MARGIN_THAT_COUNTS = 1e-2
#: The reference computes the whole text again for each token, so only the engine's own test decodes long texts.
LONGEST_GREEDY_PROMPT = 64


def cases(folder: str) -> list[dict[str, Any]]:
    expected: dict[str, Any] = json.loads((GOLDEN / folder / "expected.json").read_text())
    found: list[dict[str, Any]] = expected["cases"]
    return found


@pytest.mark.parametrize("folder", FOLDERS)
def test_the_reference_agrees_with_nanochat(folder: str) -> None:
    found = checkpoint(folder)
    for case in cases(folder):
        last = reference.logits(found.config, found.weights, case["prompt"])[-1]
        torch.testing.assert_close(last, torch.tensor(case["last_logits"]), atol=LOGITS_WITHIN, rtol=0)
        if case["min_margin"] > MARGIN_THAT_COUNTS and len(case["prompt"]) <= LONGEST_GREEDY_PROMPT:
            ids = reference.greedy(found.config, found.weights, case["prompt"], len(case["greedy"]))
            assert ids == case["greedy"]


@pytest.mark.parametrize("folder", FOLDERS)
def test_the_era_is_recognized(folder: str) -> None:
    era = load(find(str(GOLDEN / folder), GOLDEN)).config.era
    expected = folder.split("/")[0]
    # E5 is E4 with another softcap; the guide's own format is E1b.
    assert era == {"E5": "E4", "E1b-seed": "E1b"}.get(expected, expected)


def test_the_softcap_of_e5_makes_it_e5() -> None:
    config = checkpoint("E5/step_000101").config
    assert (config.era, config.softcap) == ("E5", 20.0)


def test_a_file_that_may_be_e4_or_e5_has_a_warning_until_the_softcap_is_given() -> None:
    folder = find(str(GOLDEN / "E4/step_000101"), GOLDEN)
    assert any("CELERIAC_SOFTCAP=20" in warning for warning in load(folder).warnings)
    assert load(folder, softcap=15.0).warnings == ()


def test_a_meta_file_without_windows_in_an_era_with_windows_has_a_warning() -> None:
    (warning,) = checkpoint("E2/step_000101").warnings
    assert "meta_000101.json" in warning
    assert "window_pattern" in warning
