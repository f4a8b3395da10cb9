"""The command-line tool `llm` against a real server, for chat and base checkpoints."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.conformance.client_environment import ClientEnvironment
from tests.conformance.conftest import Server

pytestmark = pytest.mark.slow

TALK = ("the sum", "-s", "Be brief.", "-o", "temperature", "0", "-o", "max_tokens", "12")


def configure(server: Server, home: Path) -> dict[str, str]:
    """Name the server's checkpoints for `llm`: `sums` and `chatty`. Returns variables for it."""
    models = [
        {
            "model_id": "sums",
            "model_name": server.sums.name,
            "api_base": server.openai_url,
            "completion": True,
        },
        {"model_id": "chatty", "model_name": server.chat.name, "api_base": server.openai_url},
    ]
    # JSON is YAML.
    (home / "extra-openai-models.yaml").write_text(json.dumps(models))
    return {"LLM_USER_PATH": str(home)}


def test_an_endpoint_without_configuration(server: Server, clients: ClientEnvironment) -> None:
    url = server.openai_url
    assert clients.run("llm", "openai", "endpoint", url, "--models").split() == [server.chat.name, server.sums.name]
    chat = ("llm", "openai", "endpoint", url, "-m", server.chat.name, *TALK)
    streamed, whole = clients.run(*chat), clients.run(*chat, "--no-stream")
    assert streamed == whole
    assert whole.strip()


@pytest.mark.parametrize(
    "options", [(), ("--no-stream",), ("-o", "logprobs", "2"), ("--no-stream", "-o", "logprobs", "2")]
)
def test_a_base_checkpoint(
    server: Server, clients: ClientEnvironment, tmp_path: Path, options: tuple[str, ...]
) -> None:
    variables = configure(server, tmp_path)
    prompt = ("123+456=", "-o", "temperature", "0", "-o", "max_tokens", "12")
    assert clients.run("llm", "-m", "sums", *prompt, *options, **variables).strip() == "579"


def test_a_chat_checkpoint(server: Server, clients: ClientEnvironment, tmp_path: Path) -> None:
    variables = configure(server, tmp_path)
    text = clients.run("llm", "-m", "chatty", *TALK, **variables)
    again = clients.run("llm", "-c", "the sum", "-o", "max_tokens", "12", **variables)
    assert text.strip()
    assert again.strip()
    logged = json.loads(clients.run("llm", "logs", "-n", "2", "--json", **variables))
    first, second = sorted(logged, key=lambda call: str(call["datetime_utc"]))
    assert first["system"] == "Be brief."
    assert first["response"] == text.removesuffix("\n")
    assert first["conversation_id"] == second["conversation_id"]
    assert (first["output_tokens"], second["output_tokens"]) == (12, 12)
    # The second turn has the first one in front of it.
    assert second["input_tokens"] > first["input_tokens"] + first["output_tokens"]


def test_an_error_is_told(server: Server, clients: ClientEnvironment) -> None:
    process = clients.start("llm", "openai", "endpoint", server.openai_url, "-m", server.sums.name, "hello")
    _, errors = process.communicate(timeout=60)
    assert process.returncode != 0
    assert "is not a chat model" in errors
