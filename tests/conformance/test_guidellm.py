"""guidellm against a real server: a short benchmark on each of the routes that it knows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.conformance.client_environment import ClientEnvironment
from tests.conformance.conftest import Server
from tests.conformance.tokenizer_folder import exported

pytestmark = pytest.mark.slow

REQUESTS = 8
PROMPT_TOKENS, OUTPUT_TOKENS = 20, 10


@pytest.mark.parametrize("route", ["/v1/completions", "/v1/chat/completions", "/v1/responses"])
@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
def test_a_benchmark(server: Server, clients: ClientEnvironment, tmp_path: Path, route: str, stream: bool) -> None:
    tokenizer, report = exported(server.chat, tmp_path / "tokenizer"), tmp_path / "report.json"
    backend = f"kind=openai_http,target={server.url},model={server.chat.name},request_format={route},stream={stream}"
    clients.run(
        "guidellm",
        *("run", "--disable-console", "--backend", backend),
        *("--profile", "kind=concurrent,streams=2"),
        *("--constraint", f"kind=max_requests,count={REQUESTS}"),
        *("--tokenizer", f"kind=huggingface_auto,model={tokenizer}"),
        *("--data", f"kind=synthetic_text,prompt_tokens={PROMPT_TOKENS},output_tokens={OUTPUT_TOKENS}"),
        *("--output", f"kind=json,path={report}"),
    )
    (benchmark,) = json.loads(report.read_text())["benchmarks"]
    metrics = benchmark["metrics"]
    assert metrics["request_totals"] == {"successful": REQUESTS, "errored": 0, "incomplete": 0, "total": REQUESTS}
    # Its counts are those of `usage`.
    counted = metrics["output_token_count"]["successful"]
    assert counted["total_sum"] == REQUESTS * OUTPUT_TOKENS
    if stream:
        assert metrics["time_to_first_token_ms"]["successful"]["count"] == REQUESTS
    if route == "/v1/completions":
        prompts = metrics["prompt_token_count"]["successful"]
        assert prompts["min"] >= PROMPT_TOKENS - 1
