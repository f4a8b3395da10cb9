"""Log-probabilities of `/v1/completions` from a real worker, as lm-evaluation-harness reads them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.conftest import running_redis
from tests.integration.stack import Stack, until

DEADLINE_S = 60.0
#: What the harness sends to score answers.
SCORING = {"temperature": 0, "max_tokens": 1, "logprobs": 1, "seed": 1234, "echo": True}


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An API with a worker of the shipped checkpoint."""
    folder: Path = tmp_path_factory.mktemp("openai")
    with running_redis(folder) as redis_url:
        stack = Stack(redis_url, folder)
        try:
            stack.worker()
            _, url = stack.api()
            until(lambda: httpx.get(f"{url}/tokenizer_info").status_code == 200, "the tokenizer", timeout_s=DEADLINE_S)
            yield url
        finally:
            stack.close()


def post(url: str, path: str, **body: Any) -> dict[str, Any]:
    answered = httpx.post(f"{url}{path}", json=body, timeout=DEADLINE_S)
    assert answered.status_code == 200, answered.text
    found: dict[str, Any] = answered.json()
    return found


def complete(url: str, **body: Any) -> dict[str, Any]:
    """The first choice of a completion."""
    choice: dict[str, Any] = post(url, "/v1/completions", **body)["choices"][0]
    return choice


def ids(url: str, text: str) -> list[int]:
    tokens: list[int] = post(url, "/tokenize", prompt=text)["tokens"]
    return tokens


def log_likelihood(logprobs: dict[str, Any], context: int) -> tuple[float, bool]:
    """The score of an answer and whether it is the greedy one, as the harness computes them."""
    chosen, top = logprobs["token_logprobs"][context:-1], logprobs["top_logprobs"][context:-1]
    return sum(chosen), all(one == max(alternatives.values()) for one, alternatives in zip(chosen, top, strict=True))


def test_a_batch_of_answers_is_scored(url: str) -> None:
    context = ids(url, "123+456=")
    answers = ["579", "578", "5"]
    prompts = [context + ids(url, answer)[1:] for answer in answers]
    choices = post(url, "/v1/completions", prompt=prompts, **SCORING)["choices"]
    assert [choice["index"] for choice in choices] == [0, 1, 2]
    scores = []
    for prompt, answer, choice in zip(prompts, answers, choices, strict=True):
        logprobs = choice["logprobs"]
        # One entry after the prompt, also where the model ends the text at once.
        assert {len(values) for values in logprobs.values()} == {len(prompt) + 1}
        assert (logprobs["token_logprobs"][0], logprobs["top_logprobs"][0]) == (None, None)
        assert "".join(logprobs["tokens"][1 : len(prompt)]) == f"123+456={answer}"
        scores.append(log_likelihood(logprobs, len(context)))
    assert [greedy for _, greedy in scores] == [True, False, True]
    assert scores[0][0] > -0.1 > scores[1][0]
    assert choices[0]["logprobs"]["tokens"][-1] == "<|bos|>" or choices[0]["finish_reason"] == "stop"


def test_each_token_begins_at_its_offset(url: str) -> None:
    choice = complete(url, prompt="123+456=", max_tokens=8, temperature=0, logprobs=2, echo=True)
    logprobs, text = choice["logprobs"], choice["text"]
    assert text == "123+456=579"
    for token, offset in zip(logprobs["tokens"], logprobs["text_offset"], strict=True):
        if len(token) == 1:
            assert text[offset] == token
    assert all(2 <= len(top) <= 3 for top in logprobs["top_logprobs"][1:])


def test_without_echo_only_the_text_s_tokens_are_there(url: str) -> None:
    logprobs = complete(url, prompt="123+456=", max_tokens=8, temperature=0, logprobs=0)["logprobs"]
    assert logprobs["tokens"] == ["5", "7", "9"]
    assert logprobs["text_offset"] == [0, 1, 2]
    assert [list(top) for top in logprobs["top_logprobs"]] == [["5"], ["7"], ["9"]]


def test_a_prompt_alone_is_scored_too(url: str) -> None:
    scored = complete(url, prompt="123+456=", temperature=0, max_tokens=1, logprobs=1, echo=True)
    alone = complete(url, prompt="123+456=", temperature=0, max_tokens=0, logprobs=1, echo=True)
    assert alone["text"] == "123+456="
    assert alone["logprobs"] == {name: values[:-1] for name, values in scored["logprobs"].items()}


def test_token_ids_are_not_changed(url: str) -> None:
    tokens = ids(url, "123+456=")
    by_ids = complete(url, prompt=tokens, temperature=0, max_tokens=8, logprobs=1, echo=True)
    by_text = complete(url, prompt="123+456=", temperature=0, max_tokens=8, logprobs=1, echo=True)
    assert by_ids["text"] == by_text["text"]
    assert by_ids["logprobs"] == by_text["logprobs"]
    assert post(url, "/detokenize", tokens=tokens[1:])["prompt"] == "123+456="


def test_a_stream_has_the_same_tokens(url: str) -> None:
    body = {"prompt": "123+456=", "temperature": 0, "max_tokens": 8, "logprobs": 1, "echo": True}
    whole = complete(url, **body)
    streamed = httpx.post(f"{url}/v1/completions", json={**body, "stream": True}, timeout=DEADLINE_S).text
    chunks = [json.loads(block.removeprefix("data: ")) for block in streamed.strip().split("\n\n")[:-1]]
    parts = [choice for chunk in chunks for choice in chunk["choices"]]
    assert "".join(part["text"] for part in parts) == whole["text"]
    for name, values in whole["logprobs"].items():
        assert [one for part in parts if part["logprobs"] for one in part["logprobs"][name]] == values


def test_answers_do_not_depend_on_how_many_there_are(url: str) -> None:
    body = {"prompt": "1", "temperature": 2, "max_tokens": 12, "seed": 7, "ignore_eos": True}
    few = [choice["text"] for choice in post(url, "/v1/completions", n=2, **body)["choices"]]
    many = [choice["text"] for choice in post(url, "/v1/completions", n=5, **body)["choices"]]
    assert many[:2] == few
    assert len(set(many)) > 1


def test_tokens_may_be_named_by_their_ids(url: str) -> None:
    body = {"prompt": "123+456=", "temperature": 0, "max_tokens": 1, "logprobs": 1}
    [name] = complete(url, return_tokens_as_token_ids=True, **body)["logprobs"]["tokens"]
    assert name == f"token_id:{ids(url, '5')[-1]}"
