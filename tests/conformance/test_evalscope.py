"""evalscope's performance test against a real server."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.conformance.client_environment import ClientEnvironment
from tests.conformance.conftest import Server
from tests.conformance.tokenizer_folder import exported

pytestmark = pytest.mark.slow

REQUESTS = 6
TOKENS = 8
#: Arguments for each route. Prompts are token ids, texts, or messages.
ROUTES = {
    "ids": ("/v1/completions", "--dataset", "random", "--tokenize-prompt"),
    "text": ("/v1/completions", "--dataset", "random"),
    "chat": ("/v1/chat/completions", "--dataset", "random"),
    "whole": ("/v1/completions", "--dataset", "random", "--no-stream"),
}


@pytest.mark.parametrize("name", ROUTES)
def test_a_benchmark(server: Server, evalscope: ClientEnvironment, tmp_path: Path, name: str) -> None:
    route, *arguments = ROUTES[name]
    tokenizer = exported(server.chat, tmp_path / "tokenizer")
    evalscope.run(
        "evalscope",
        *("perf", "--api", "openai", "--url", server.url + route, "--model", server.chat.name),
        *("--tokenizer-path", str(tokenizer), "--min-prompt-length", "20", "--max-prompt-length", "30", *arguments),
        *("--number", str(REQUESTS), "--parallel", "2", "--max-tokens", str(TOKENS), "--min-tokens", str(TOKENS)),
        *("--extra-args", json.dumps({"ignore_eos": True})),
        *("--outputs-dir", str(tmp_path / "results"), "--no-timestamp"),
    )
    (file,) = (tmp_path / "results").rglob("benchmark_summary.json")
    summary = json.loads(file.read_text())
    assert (summary["Success Requests"], summary["Failed Requests"]) == (REQUESTS, 0)
    assert summary["Avg Output Tokens"] == TOKENS
    assert (summary["Stream Requests"] > 0) == (name != "whole")
    if name == "ids":
        assert 20 <= summary["Avg Input Tokens"] <= 30
