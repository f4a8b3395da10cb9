"""`client.responses` of openai-python against a real server."""

from __future__ import annotations

from typing import Any

import pytest

from tasks.chat import Message
from tasks.sampling_params import SamplingParams
from tests.conformance.conftest import Server
from worker.local import LocalModel

pytestmark = pytest.mark.slow

TOKENS = 12


@pytest.fixture(scope="module")
def seen(server: Server, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the client read."""
    clients = server.clients(tmp_path_factory.mktemp("home"))
    found: dict[str, Any] = clients.script("openai_responses", {"sums": server.sums.name, "chat": server.chat.name})
    return found


@pytest.fixture(scope="module")
def text(server: Server) -> str:
    """The answer of the checkpoint in this process."""
    model = LocalModel.load(str(server.chat), server.chat.parent, threads=1)
    prompt = model.encode_messages([Message("system", "Be brief."), Message("user", "the sum")])
    answer = model.generate(prompt, SamplingParams(max_tokens=TOKENS, temperature=0.0), tools=True)
    assert answer.text
    return answer.text


def deltas(events: list[dict[str, Any]]) -> str:
    """The text of the events."""
    return "".join(event["delta"] for event in events if event["type"] == "response.output_text.delta")


def test_a_response(seen: dict[str, Any], text: str) -> None:
    first = seen["first"]
    assert first["output_text"] == seen["parts"] == text
    assert first["status"] == "incomplete"
    assert first["incomplete_details"] == {"reason": "max_output_tokens"}
    assert first["usage"]["output_tokens"] == TOKENS
    assert first["metadata"] == {"run": "7"}
    assert seen["retrieved"] == {name: value for name, value in first.items() if name != "output_text"}
    (item,) = seen["items"]
    assert (item["role"], item["content"][0]["text"]) == ("user", "the sum")


def test_a_second_turn(seen: dict[str, Any]) -> None:
    first, second = seen["first"], seen["second"]
    assert second["previous_response_id"] == first["id"]
    assert second["usage"]["input_tokens"] > first["usage"]["input_tokens"] + TOKENS
    assert second["output_text"] != first["output_text"]


def test_log_probabilities(seen: dict[str, Any]) -> None:
    (item,) = seen["scored"]["output"]
    tokens = item["content"][0]["logprobs"]
    assert len(tokens) == TOKENS
    for token in tokens:
        assert token["logprob"] == token["top_logprobs"][0]["logprob"]


def test_a_stream(seen: dict[str, Any], text: str) -> None:
    events = seen["raw_stream"]
    numbers = [event["sequence_number"] for event in events]
    assert numbers == sorted({*numbers})
    assert deltas(events) == text
    assert (events[0]["type"], events[-1]["type"]) == ("response.created", "response.incomplete")
    assert events[-1]["response"]["output"][0]["content"][0]["text"] == text


def test_the_helper_for_streams(seen: dict[str, Any], text: str) -> None:
    final = seen["final"]
    assert final["status"] == "completed"
    assert final["output_text"] == text.partition(" ")[0] == seen["again_text"]
    assert seen["events"][0] == "response.created"
    assert seen["events"][-1] == "response.completed"
    # It begins with the text. A response that started at once has no event `response.queued` before it.
    begin = seen["events"].index("response.content_part.added") + 1
    assert seen["again"] == seen["events"][begin:]


def test_a_stream_from_its_middle(seen: dict[str, Any], text: str) -> None:
    """A delta after n tokens has the number 4 + n."""
    events = seen["after"]
    assert all(event["sequence_number"] > 8 for event in events)
    assert text.endswith(deltas(events))
    before = [event for event in seen["raw_stream"] if event["sequence_number"] <= 8]
    assert deltas(before) + deltas(events) == text


def test_in_the_background(seen: dict[str, Any], text: str) -> None:
    status, found = seen["background"]
    assert status in ("queued", "in_progress")
    assert found == text
    assert seen["cancelled"] == "cancelled"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("deleted", ("NotFoundError", "not_found")),
        ("unknown", ("NotFoundError", "not_found")),
        ("previous", ("BadRequestError", "previous_response_not_found")),
        ("tools", ("BadRequestError", "unsupported_parameter")),
        ("base", ("BadRequestError", "chat_unsupported")),
        ("input", ("BadRequestError", "input_type")),
        ("temperature", ("BadRequestError", "less_than_equal")),
    ],
)
def test_errors(seen: dict[str, Any], name: str, expected: tuple[str, str]) -> None:
    error = seen["errors"][name]
    assert (error["class"], error["code"]) == expected
