"""The stand-in for the original guide's server, and ours beside it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from fastapi.testclient import TestClient

from bench.engine.plain_model import PlainModel
from bench.guide.__main__ import CHECKED, disagreements
from bench.guide.server import PlainCheckpoint, create_app
from tests.helpers import checkpoint_files, reference
from tests.integration.stack import CHECKPOINTS, ROOT
from worker.checkpoints import formats
from worker.checkpoints.folder import find

SHIPPED = "step_003650"


@pytest.fixture(scope="module")
def stand_in() -> TestClient:
    return TestClient(create_app(PlainCheckpoint(SHIPPED, CHECKPOINTS)))


def test_the_plain_model_is_nanochats(tmp_path: Path) -> None:
    # Fewer heads of keys than of queries, and more rows than ids.
    grouped = checkpoint_files.write(tmp_path / "step_000007", era="E1b")
    for folder in (CHECKPOINTS / SHIPPED, grouped):
        checkpoint = formats.load(find(str(folder), Path()))
        plain = PlainModel(checkpoint.config, checkpoint.weights)
        ids = [(5 * place) % checkpoint.config.vocab_size for place in range(40)]
        expected = reference.logits(checkpoint.config, checkpoint.weights, ids)
        for length in (1, 40):
            assert torch.allclose(plain.logits(ids[:length]), expected[length - 1], atol=1e-4)


def test_a_later_era_is_refused(tmp_path: Path) -> None:
    checkpoint = formats.load(find(str(checkpoint_files.write(tmp_path / "step_000007", era="E7")), Path()))
    with pytest.raises(ValueError, match="E7"):
        PlainModel(checkpoint.config, checkpoint.weights)


def test_the_stand_in_answers_as_the_guide_says(stand_in: TestClient) -> None:
    asked = {"prompt": "123+456=", "max_tokens": 7, "temperature": 0.0}
    greedy = stand_in.post("/generate", json=asked).raise_for_status().json()
    assert greedy["generated_text"].startswith("123+456=")
    assert (greedy["prompt"], greedy["tokens_generated"], greedy["model"]) == ("123+456=", 7, SHIPPED)
    # Of one candidate every draw is the same.
    drawn = stand_in.post("/generate", json={**asked, "temperature": 1.5, "top_k": 1}).raise_for_status().json()
    assert drawn == greedy
    lines = {"prompt": "1", "max_tokens": 100, "temperature": 0.0, "stop_on_newline": True}
    line = stand_in.post("/generate", json=lines).raise_for_status().json()
    assert line["generated_text"].endswith("\n")
    assert line["generated_text"].count("\n") == 1
    assert stand_in.post("/generate", json={"prompt": "1", "max_tokens": 0}).status_code == 422
    assert stand_in.get("/health").json() == {"status": "ok", "model_loaded": True, "checkpoint": SHIPPED}


def test_texts_that_differ_are_found() -> None:
    right = [" "] * len(CHECKED)
    assert disagreements(SHIPPED, 1, right, right) == []
    wrong = disagreements(SHIPPED, 1, ["0"] * len(CHECKED), ["1"] * len(CHECKED))
    assert any(difference.startswith("ours") for difference in wrong)
    assert any(difference.startswith("the stand-in") for difference in wrong)


def test_ours_and_the_stand_in_are_compared() -> None:
    sizes = ["--clients", "4", "--max-tokens", "5", "--requests", "16", "--guide-requests", "4", "--rounds", "1"]
    command = [sys.executable, "-m", "bench.guide", "--shape", "2,32,2,64", *sizes, "--threads", "1"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280, check=True)
    result = json.loads(run.stdout.splitlines()[-1])
    [row] = result["rows"]
    assert result["same_texts"]
    assert row["ratios"] == [row["ratio"]]
    assert row["ratio"] == pytest.approx(row["tokens_per_s"] / row["guide_tokens_per_s"], rel=0.01)
    # All of a request's tokens are decoded, whatever the model wants.
    for side in ("", "guide_"):
        assert row[f"{side}tokens_per_s"] == pytest.approx(5 * row[f"{side}requests_per_s"], rel=0.1, abs=0.5)
