"""lm-evaluation-harness against a real server gives the scores that it gives on the model in its own process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.conformance.conftest import Server
from tests.conformance.tokenizer_folder import exported

pytestmark = pytest.mark.slow

SUMS = [(1, 1), (12, 34), (123, 456), (99, 1), (500, 500), (7, 93), (38, 4), (250, 251)]
TASKS = ("choice", "generate", "rolling")
#: Most difference of a log-likelihood, which is a sum over the tokens of a text.
TOLERANCE = 1e-4


def write_tasks(folder: Path) -> None:
    """Write a data set of sums, and a task of each type that scores or generates."""
    docs = [
        {"text": f"{a}+{b}=", "sum": str(a + b), "choices": [str(a + b), str(a + b + 1), str(abs(a - b)), "0"]}
        for a, b in SUMS
    ]
    (folder / "sums.jsonl").write_text("".join(json.dumps(doc) + "\n" for doc in docs))
    data = {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(folder / "sums.jsonl")}},
        "test_split": "test",
        "doc_to_text": "{{text}}",
    }
    choice = {"doc_to_choice": "choices", "doc_to_target": 0, "metric_list": [{"metric": "acc"}]}
    generate = {
        "doc_to_target": "{{sum}}",
        "generation_kwargs": {"until": ["\n", "+", "-", "=", "."], "max_gen_toks": 8},
        "metric_list": [{"metric": "exact_match"}],
    }
    rolling = {
        "doc_to_text": "",
        "doc_to_target": "{{text}}{{sum}}",
        "metric_list": [{"metric": "word_perplexity", "higher_is_better": False}],
    }
    tasks = {"multiple_choice": choice, "generate_until": generate, "loglikelihood_rolling": rolling}
    for name, (output_type, fields) in zip(TASKS, tasks.items(), strict=True):
        task = {"task": name, "output_type": output_type, **data, **fields}
        # JSON is YAML.
        (folder / f"{name}.yaml").write_text(json.dumps(task))


def served(
    server: Server, home: Path, checkpoint: Path, *, batch_size: int = 1, **arguments: object
) -> dict[str, list[Any]]:
    """What the harness got from the server: for each task the answer to each of its documents."""
    write_tasks(home)
    pairs = {"model": checkpoint.name, "base_url": f"{server.openai_url}/completions", **arguments}
    server.clients(home).run(
        "lm_eval",
        *("--model", "local-completions", "--model_args", ",".join(f"{key}={value}" for key, value in pairs.items())),
        *("--batch_size", str(batch_size), "--tasks", ",".join(TASKS), "--include_path", str(home)),
        *("--log_samples", "--output_path", str(home / "results")),
    )
    found = {}
    for name in TASKS:
        (file,) = (home / "results").glob(f"*/samples_{name}_*.jsonl")
        found[name] = by_document([json.loads(line) for line in file.read_text().splitlines()])
    return found


def in_process(server: Server, home: Path, checkpoint: Path, tokenizer: Path, *, bos: bool) -> dict[str, list[Any]]:
    """What the harness got from the model in its own process."""
    given = {
        "checkpoint": str(checkpoint),
        "tokenizer": str(tokenizer),
        "bos": bos,
        "tasks": TASKS,
        "include_path": str(home),
    }
    found = server.clients(home).script("lm_eval_in_process", given)
    return {name: by_document(samples) for name, samples in found["samples"].items()}


def by_document(samples: list[dict[str, Any]]) -> list[Any]:
    """The answers in the order of the documents. The harness writes scores into its files as texts."""
    ordered = sorted(samples, key=lambda sample: int(sample["doc_id"]))
    return [sample["filtered_resps"] for sample in ordered]


def assert_equal(found: dict[str, list[Any]], expected: dict[str, list[Any]]) -> None:
    """Equal scores, equal marks of what is greedy, and equal texts."""
    assert {name: len(answers) for name, answers in found.items()} == dict.fromkeys(TASKS, len(SUMS))
    for ours, theirs in zip(found["choice"], expected["choice"], strict=True):
        assert [float(score) for score, _ in ours] == pytest.approx([score for score, _ in theirs], abs=TOLERANCE)
        assert [greedy for _, greedy in ours] == [str(greedy) for _, greedy in theirs]
    assert whole_characters(found["generate"]) == whole_characters(expected["generate"])
    scores = [float(score) for (score,) in found["rolling"]]
    assert scores == pytest.approx([score for (score,) in expected["rolling"]], abs=TOLERANCE)


def whole_characters(answers: list[list[str]]) -> list[str]:
    """The texts without an incomplete character at their end: the server leaves it out."""
    return [text.rstrip("\ufffd") for (text,) in answers]


@pytest.mark.parametrize("batch_size", [1, 5])
def test_a_checkpoint_that_knows_sums(server: Server, tmp_path: Path, batch_size: int) -> None:
    """Each call has one prompt, or several of different lengths."""
    tokenizer = exported(server.sums, tmp_path / "tokenizer")
    arguments = {"tokenizer": tokenizer, "add_bos_token": True, "num_concurrent": 4}
    found = served(server, tmp_path, server.sums, batch_size=batch_size, **arguments)
    assert_equal(found, in_process(server, tmp_path, server.sums, tokenizer, bos=True))
    # It is a model that answers, not noise: all sums are more likely than other numbers.
    scores = [[float(score) for score, _ in answers] for answers in found["choice"]]
    assert all(score[0] == max(score) for score in scores)
    assert sum(answer == [str(a + b)] for answer, (a, b) in zip(found["generate"], SUMS, strict=True)) >= 6


def test_the_server_tokenizes(server: Server, tmp_path: Path) -> None:
    """Without a tokenizer of its own the harness asks the server for token ids, and never sends BOS."""
    found = served(server, tmp_path, server.chat, num_concurrent=2, max_length=1024)
    tokenizer = exported(server.chat, tmp_path / "tokenizer")
    assert_equal(found, in_process(server, tmp_path, server.chat, tokenizer, bos=False))
