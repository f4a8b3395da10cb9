"""openai-python against a real server: every field that its classes read, and its exceptions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest

from tasks.chat import Message
from tasks.job import Status
from tasks.sampling_params import SamplingParams
from tests.conformance.conftest import Server
from tests.integration.stack import until
from worker.local import Completion, LocalModel

pytestmark = pytest.mark.slow

IDS = (1, 2, 3, 10, 4, 5, 6, 13)
#: Log-probabilities of one model in two processes, alone and in batches.
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def sums(server: Server) -> LocalModel:
    return LocalModel.load(str(server.sums), server.sums.parent, threads=1)


@pytest.fixture(scope="module")
def chat(server: Server) -> LocalModel:
    return LocalModel.load(str(server.chat), server.chat.parent, threads=1)


@pytest.fixture(scope="module")
def eos(chat: LocalModel) -> int:
    found = chat.card.tokenizer.eos_id
    assert found is not None
    return found


@pytest.fixture(scope="module")
def seen(server: Server, eos: int, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the synchronous client read."""
    clients = server.clients(tmp_path_factory.mktemp("home"))
    given = {"sums": server.sums.name, "chat": server.chat.name, "ids": IDS, "eos": eos}
    found: dict[str, Any] = clients.script("openai_sync", given)
    return found


@pytest.fixture(scope="module")
def answered(chat: LocalModel) -> Completion:
    """The answer of the chat checkpoint in this process."""
    prompt = chat.encode_messages([Message("system", "Be brief."), Message("user", "the sum")])
    return chat.generate(prompt, greedy(12, logprobs=2), tools=True)


def greedy(max_tokens: int, **fields: Any) -> SamplingParams:
    return SamplingParams(max_tokens=max_tokens, temperature=0.0, **fields)


def texts(answer: dict[str, Any]) -> list[str]:
    """The texts of a completion, in the order of its choices, whose indexes count up."""
    assert [choice["index"] for choice in answer["choices"]] == [*range(len(answer["choices"]))]
    return [choice["text"] for choice in answer["choices"]]


def joined(chunks: list[dict[str, Any]], index: int) -> str:
    """The text of one choice of a stream of completions."""
    return "".join(choice["text"] for chunk in chunks for choice in chunk["choices"] if choice["index"] == index)


def counts(usage: dict[str, Any]) -> tuple[int, int, int]:
    return usage["prompt_tokens"], usage["completion_tokens"], usage["total_tokens"]


def test_models(seen: dict[str, Any], server: Server) -> None:
    models = {model["id"]: model for model in seen["models"]}
    assert {*models} == {server.sums.name, server.chat.name}
    assert {name: model["chat"] for name, model in models.items()} == {server.sums.name: False, server.chat.name: True}
    assert all(model["ready"] and model["root"] == name for name, model in models.items())
    assert models[server.sums.name]["max_model_len"] == 2048
    assert seen["model"] == models[server.sums.name]


def test_completions(seen: dict[str, Any], sums: LocalModel) -> None:
    assert texts(seen["text"]) == ["579"]
    assert counts(seen["text"]["usage"]) == (9, 3, 12)
    assert seen["text"]["choices"][0]["finish_reason"] == "stop"
    assert texts(seen["texts"]) == ["2", "4", "7"]
    alone = [sums.generate(ids, greedy(20)).text for ids in (IDS, IDS[:4])]
    assert texts(seen["ids"]) == alone[:1]
    assert texts(seen["id_lists"]) == alone
    # Token ids are taken as they are, without BOS.
    assert seen["ids"]["usage"]["prompt_tokens"] == len(IDS)


def test_several_answers(seen: dict[str, Any]) -> None:
    assert texts(seen["n"]) == texts(seen["n_again"])
    assert len({*texts(seen["n"])}) > 2
    assert len(seen["n"]["choices"]) == 6


def test_log_probabilities(seen: dict[str, Any], sums: LocalModel) -> None:
    prompt, _ = sums.encode("123+456=")
    alone = sums.generate(prompt, greedy(20, logprobs=3, prompt_logprobs=3))
    assert alone.logprobs is not None
    assert alone.prompt_logprobs is not None
    expected = [one.chosen.logprob for one in (*alone.prompt_logprobs, *alone.logprobs)]
    (choice,) = seen["echo"]["choices"]
    found = choice["logprobs"]
    assert choice["text"] == "123+456=579"
    assert found["token_logprobs"][0] is None
    assert found["top_logprobs"][0] is None
    assert found["token_logprobs"][1:] == pytest.approx(expected, abs=TOLERANCE)
    assert found["tokens"][1:-1] == [*"123+456=579"]
    # The greedy tokens of the answer are the most likely ones to the bit, which clients compare.
    for logprob, top in zip(found["token_logprobs"][9:], found["top_logprobs"][9:], strict=True):
        assert logprob == max(top.values())


def test_a_prompt_alone(seen: dict[str, Any], sums: LocalModel) -> None:
    alone = sums.generate(IDS, greedy(1, prompt_logprobs=1))
    assert alone.prompt_logprobs is not None
    (choice,) = seen["scored"]["choices"]
    assert choice["logprobs"]["token_logprobs"][1:] == pytest.approx(
        [one.chosen.logprob for one in alone.prompt_logprobs], abs=TOLERANCE
    )
    assert counts(seen["scored"]["usage"]) == (len(IDS), 0, len(IDS))


def test_a_stream_of_completions(seen: dict[str, Any]) -> None:
    *chunks, last = seen["text_stream"]
    assert [joined(chunks, index) for index in range(2)] == ["579", "4"]
    assert last["choices"] == []
    assert counts(last["usage"]) == (14, 4, 18)
    assert all(chunk["usage"] is None for chunk in chunks)
    ends = {choice["index"]: choice["finish_reason"] for chunk in chunks for choice in chunk["choices"]}
    assert ends == {0: "stop", 1: "stop"}


def test_headers(seen: dict[str, Any], server: Server) -> None:
    first, again = seen["headers"], seen["headers_again"]
    assert first["x-request-id"] == seen["request_id"] == "mine-1"
    assert first["x-job-id"] == again["x-job-id"]
    assert again["idempotency-replayed"] == "true"
    job = httpx.get(f"{server.url}/v1/jobs/{first['x-job-id']}").json()
    assert job["status"] == Status.SUCCEEDED


def test_chat(seen: dict[str, Any], answered: Completion) -> None:
    (choice,) = seen["chat"]["choices"]
    assert choice["message"]["content"] == answered.text
    assert choice["message"]["role"] == "assistant"
    assert choice["finish_reason"] == "length"
    assert counts(seen["chat"]["usage"]) == (len(answered.prompt_ids), 12, len(answered.prompt_ids) + 12)
    assert seen["chat_parts"]["choices"][0]["message"] == choice["message"]
    several = [one["message"]["content"] for one in seen["chat_n"]["choices"]]
    assert len({*several}) == 2


def test_log_probabilities_of_chat(seen: dict[str, Any], answered: Completion) -> None:
    (choice,) = seen["chat_logprobs"]["choices"]
    content = choice["logprobs"]["content"]
    assert answered.logprobs is not None
    expected = [one.chosen.logprob for one in answered.logprobs]
    assert [token["logprob"] for token in content] == pytest.approx(expected, abs=TOLERANCE)
    assert all(len(token["top_logprobs"]) == 2 for token in content)
    text = b"".join(bytes(token["bytes"]) for token in content)
    assert text.decode(errors="replace") == answered.text


def test_a_stream_of_chat(seen: dict[str, Any], answered: Completion) -> None:
    *chunks, last = seen["chat_chunks"]
    deltas = [choice["delta"] for chunk in chunks for choice in chunk["choices"]]
    assert (deltas[0]["role"], deltas[0]["content"]) == ("assistant", "")
    assert "".join(delta["content"] or "" for delta in deltas) == answered.text
    assert chunks[-1]["choices"][0]["finish_reason"] == "length"
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] == 12
    scored = [choice["logprobs"] for chunk in chunks for choice in chunk["choices"] if choice["logprobs"]]
    assert sum(len(one["content"]) for one in scored) == 12


def test_the_helper_for_streams_of_chat(seen: dict[str, Any]) -> None:
    message = seen["chat_ended"]["choices"][0]["message"]
    assert seen["chat_final"]["choices"][0]["message"]["content"] == message["content"]
    assert seen["chat_final"]["choices"][0]["finish_reason"] == "stop"
    assert seen["chat_events"][-1] == "content.done"


ERRORS = {
    "no_model": ("NotFoundError", "model", "model_not_found"),
    "no_model_retrieve": ("NotFoundError", "model", "model_not_found"),
    "temperature": ("BadRequestError", "temperature", "less_than_equal"),
    "n_0": ("BadRequestError", "n", "greater_than_equal"),
    "n_129": ("BadRequestError", "n", "less_than_equal"),
    "best_of": ("BadRequestError", "best_of", "unsupported_parameter"),
    "suffix": ("BadRequestError", "suffix", "unsupported_parameter"),
    "logprobs": ("BadRequestError", "logprobs", "less_than_equal"),
    "characters": ("BadRequestError", "prompt", "unknown_character"),
    "one_of_128": ("BadRequestError", "prompt", "unknown_character"),
    "too_long": ("BadRequestError", "prompt", "context_length_exceeded"),
    "no_bias": ("BadRequestError", "logit_bias", "unknown_token"),
    "chat_of_base": ("BadRequestError", "messages", "chat_unsupported"),
    "no_messages": ("BadRequestError", "messages", "too_short"),
    "role": ("BadRequestError", "messages.0.role", "unsupported_role"),
    "tools": ("BadRequestError", "tools", "unsupported_parameter"),
    "image": ("BadRequestError", "messages.0.content", "unsupported_content"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors(seen: dict[str, Any], name: str) -> None:
    error = seen["errors"][name]
    assert (error["class"], error["param"], error["code"]) == ERRORS[name]
    assert error["type"] == "invalid_request_error"
    assert error["status"] == (404 if error["class"] == "NotFoundError" else 400)
    assert error["request_id"]


def test_a_timeout_of_the_client_cancels_its_jobs(seen: dict[str, Any], server: Server) -> None:
    assert seen["errors"]["timeout"] == {"class": "APITimeoutError"}
    until(lambda: not unfinished(server), "the end of the jobs of a client that is gone")


def test_many_calls_at_once(server: Server, tmp_path: Path) -> None:
    clients = server.clients(tmp_path)
    found = clients.script("openai_async", {"sums": server.sums.name, "chat": server.chat.name})
    expected = [str(2 * i) for i in range(20)]
    assert found["sums"] == found["streams"] == expected
    assert len({*found["chats"]}) > 1
    assert {*found["models"]} == {server.sums.name, server.chat.name}
    assert found["error"] == "model_not_found"

    def cancelled() -> bool:
        job = httpx.get(f"{server.url}/v1/jobs/{found['left']}").json()
        return bool(job["status"] == Status.CANCELLED)

    until(cancelled, "the end of the job of a stream that its client has closed")


def unfinished(server: Server) -> list[str]:
    """The jobs that wait or run."""
    waiting = httpx.get(f"{server.url}/v1/jobs", params={"limit": 100}).json()["data"]
    return [job["id"] for job in waiting if job["status"] in (Status.QUEUED, Status.RUNNING)]
