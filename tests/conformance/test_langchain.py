"""LangChain's `OpenAI` and `ChatOpenAI` against a real server."""

from __future__ import annotations

from typing import Any

import pytest

from tests.conformance.conftest import Server

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def seen(server: Server, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the classes returned."""
    clients = server.clients(tmp_path_factory.mktemp("home"))
    found: dict[str, Any] = clients.script("langchain", {"sums": server.sums.name, "chat": server.chat.name})
    return found


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_completions(seen: dict[str, Any], kind: str) -> None:
    found = seen[kind]
    assert found["invoke"] == found["stream"] == "579"
    assert found["batch"] == [str(2 * i) for i in range(10)]


def test_lists_of_prompts(seen: dict[str, Any]) -> None:
    """LangChain sends several prompts in one call, and cuts the answers into lists of `n`."""
    assert seen["generations"] == [[str(2 * i)] for i in range(10)]
    # BOS, two digits, `+` and `=`; a digit for the first five sums and two for the others.
    assert seen["usage"]["token_usage"] == {"prompt_tokens": 50, "completion_tokens": 15, "total_tokens": 65}
    assert seen["usage"]["model_name"] == "step_002920"
    assert seen["usage"]["system_fingerprint"].startswith("fp_")
    for i, several in enumerate(seen["several"], start=1):
        assert len(several) == 2
        for text in several:
            number, total = map(int, text.split("="))
            assert total == i + number


def test_chat(seen: dict[str, Any]) -> None:
    texts = [seen[kind][name] for kind in ("sync", "async") for name in ("chat", "chat_stream")]
    assert len({*texts}) == 1
    assert texts[0]
    assert seen["metadata"]["finish_reason"] == "length"
    assert seen["chat_usage"]["output_tokens"] == 12
    assert len(seen["logprobs"]["content"]) == 12
