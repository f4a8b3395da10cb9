"""Log-probabilities are those of transformers, for the same weights: prompts and answers, alone and in a batch."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from tests.conformance.client_environment import ClientEnvironment
from tests.conformance.conftest import Server

pytestmark = pytest.mark.slow

PROMPTS = ["123+456=", "9-", "77+8=\n12+12=", "H" * 40, "1+1=2\n" * 20]
#: The agreement that fp32 allows: sums are in another order there.
TOLERANCE = 1e-4


def completions(server: Server, prompt: Any, **fields: Any) -> list[dict[str, Any]]:
    body = {"model": server.sums.name, "prompt": prompt, "logprobs": 20, "return_tokens_as_token_ids": True, **fields}
    response = httpx.post(f"{server.openai_url}/completions", json=body, timeout=120)
    assert response.status_code == 200, response.text
    choices: list[dict[str, Any]] = response.json()["choices"]
    return [choice["logprobs"] for choice in choices]


def ids_of(logprobs: dict[str, Any]) -> list[int]:
    return [int(token.removeprefix("token_id:")) for token in logprobs["tokens"]]


def check(logprobs: dict[str, Any], expected: list[list[float]]) -> None:
    """Compare the records of the last tokens with rows of log-probabilities, one for each of them."""
    for token, row, value, top in zip(
        ids_of(logprobs)[-len(expected) :],
        expected,
        logprobs["token_logprobs"][-len(expected) :],
        logprobs["top_logprobs"][-len(expected) :],
        strict=True,
    ):
        assert value == pytest.approx(row[token], abs=TOLERANCE)
        for name, alternative in top.items():
            assert alternative == pytest.approx(row[int(name.removeprefix("token_id:"))], abs=TOLERANCE)


def test_log_probabilities_are_those_of_transformers(server: Server, clients: ClientEnvironment) -> None:
    fields = {"max_tokens": 12, "temperature": 0, "ignore_eos": True}
    together = completions(server, PROMPTS, echo=True, **fields)
    meta, model = (next(server.sums.glob(pattern)) for pattern in ("meta_*.json", "model_*.pt"))
    texts = [ids_of(one) for one in together]
    expected = clients.script(
        "transformers_logprobs", {"files": {"meta": str(meta), "model": str(model)}, "texts": texts}
    )
    for prompt, whole, rows in zip(PROMPTS, together, expected, strict=True):
        check(whole, rows)
        [alone] = completions(server, prompt, **fields)
        assert alone["token_logprobs"] == whole["token_logprobs"][-len(alone["tokens"]) :]
        check(alone, rows[-len(alone["tokens"]) :])
