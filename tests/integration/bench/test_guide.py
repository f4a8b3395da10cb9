"""The stand-in for the original guide's server, and `bench.guide`, which compares Celeriac with it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from fastapi.testclient import TestClient

from bench.guide.__main__ import CHECKED_PROMPTS, disagreements
from bench.guide.plain_model import PlainModel
from bench.guide.server import PlainCheckpoint, create_app
from tests.helpers import checkpoint_files, reference
from tests.integration.bench.command import result_of
from tests.integration.stack import CHECKPOINTS
from worker.checkpoints import formats
from worker.checkpoints.folder import find

# It takes long: the processes of each test need most of its time.
pytestmark = pytest.mark.slow

SHIPPED = "step_003650"


@pytest.fixture(scope="module")
def stand_in() -> TestClient:
    return TestClient(create_app(PlainCheckpoint(SHIPPED, CHECKPOINTS)))


def test_the_plain_model_has_the_logits_of_the_reference(tmp_path: Path) -> None:
    # The second checkpoint has fewer heads for keys than for queries, and more rows than ids.
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


def test_the_stand_in_answers_as_the_guide_describes(stand_in: TestClient) -> None:
    body = {"prompt": "123+456=", "max_tokens": 7, "temperature": 0.0}
    greedy = stand_in.post("/generate", json=body).raise_for_status().json()
    assert greedy["generated_text"].startswith("123+456=")
    assert (greedy["prompt"], greedy["tokens_generated"], greedy["model"]) == ("123+456=", 7, SHIPPED)
    # With one candidate every draw is the same.
    drawn = stand_in.post("/generate", json={**body, "temperature": 1.5, "top_k": 1}).raise_for_status().json()
    assert drawn == greedy
    lines = {"prompt": "1", "max_tokens": 100, "temperature": 0.0, "stop_on_newline": True}
    line = stand_in.post("/generate", json=lines).raise_for_status().json()
    assert line["generated_text"].endswith("\n")
    assert line["generated_text"].count("\n") == 1
    assert stand_in.post("/generate", json={"prompt": "1", "max_tokens": 0}).status_code == 422
    assert stand_in.get("/health").json() == {"status": "ok", "model_loaded": True, "checkpoint": SHIPPED}


def test_different_texts_are_found() -> None:
    count = len(CHECKED_PROMPTS)
    assert disagreements(SHIPPED, 1, [" "] * count, [" "] * count) == []
    wrong = disagreements(SHIPPED, 1, ["0"] * count, ["1"] * count)
    assert any(difference.startswith("Celeriac") for difference in wrong)
    assert any(difference.startswith("the stand-in") for difference in wrong)


def test_celeriac_and_the_stand_in_are_compared() -> None:
    sizes = ["--clients", "4", "--max-tokens", "5", "--requests", "16", "--guide-requests", "4", "--rounds", "1"]
    result = result_of("bench.guide", "--shape", "2,32,2,64", *sizes, "--threads", "1", timeout_s=280)
    [row] = result["rows"]
    assert result["same_texts"]
    assert row["ratios"] == [row["ratio"]]
    assert row["ratio"] == pytest.approx(row["tokens_per_s"] / row["guide_tokens_per_s"], abs=0.01, rel=0.01)
    # Every request decodes all of its tokens, even if the model would end the text earlier.
    for side in ("", "guide_"):
        assert row[f"{side}tokens_per_s"] == pytest.approx(5 * row[f"{side}requests_per_s"], rel=0.1, abs=0.5)
