"""The examples of the original guide, run as its reader would, against the shipped checkpoints."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from celeriac import InferenceClient
from tests.conftest import running_redis
from tests.integration.stack import ROOT, Stack

#: Bodies of the curl examples in the guide.
BODIES: list[dict[str, Any]] = [
    {"prompt": "123+456=", "max_tokens": 20, "temperature": 0.0},
    {"prompt": "123+456=", "max_tokens": 100, "temperature": 0.8, "top_k": None, "stop_on_newline": False},
    {"prompt": "123+", "max_tokens": 30, "temperature": 0.0},
    {"prompt": "H+B=", "max_tokens": 50, "temperature": 0.8, "top_k": 10},
    {"prompt": "123\n456\n", "max_tokens": 100, "temperature": 0.5, "stop_on_newline": True},
]

TEST_SCRIPT = """
set -e
curl -s {url}/health | python3 -m json.tool
curl -s {url}/info | python3 -m json.tool
curl -s -X POST {url}/generate \\
  -H "Content-Type: application/json" \\
  -d '{{"prompt":"123+456=","max_tokens":20,"temperature":0.0}}' | python3 -m json.tool
"""

JAVASCRIPT = """
const response = await fetch('{url}/generate', {{
  method: 'POST',
  headers: {{ 'Content-Type': 'application/json', Origin: 'http://localhost:3000' }},
  body: JSON.stringify({{ prompt: '123+456=', max_tokens: 20, temperature: 0.0 }})
}});
const result = await response.json();
console.log(result.generated_text);
"""


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An API with one worker that serves step_002920."""
    folder = tmp_path_factory.mktemp("guide")
    with running_redis(folder) as redis_url:
        stack = Stack(f"{redis_url}?db=0", folder)
        try:
            stack.worker()
            yield stack.api()[1]
        finally:
            stack.close()


@pytest.mark.parametrize("body", BODIES, ids=lambda body: repr(body["prompt"]))
def test_each_curl_example(url: str, body: dict[str, Any]) -> None:
    response = httpx.post(f"{url}/generate", json=body, timeout=60)
    result = response.json()
    assert response.status_code == 200
    assert list(result) == ["prompt", "generated_text", "tokens_generated", "model"]
    assert (result["prompt"], result["model"]) == (body["prompt"], "step_002920")
    assert result["generated_text"].startswith(body["prompt"])
    # One character is one token here.
    assert len(result["generated_text"]) == len(body["prompt"]) + result["tokens_generated"]


def test_the_sum_of_the_guide(url: str) -> None:
    response = httpx.post(f"{url}/generate", json=BODIES[0]).json()
    assert (response["generated_text"], response["tokens_generated"]) == ("123+456=579", 3)


def test_the_newline_that_ends_a_text_is_part_of_it(url: str) -> None:
    response = httpx.post(f"{url}/generate", json={**BODIES[4], "temperature": 0.0}).json()
    assert response["generated_text"] == "123\n456\n789\n"


def test_health_info_and_overview(url: str) -> None:
    assert httpx.get(f"{url}/health").json() == {"status": "ok", "model_loaded": True, "checkpoint": "step_002920"}
    info = httpx.get(f"{url}/info").json()
    meta = (ROOT / "checkpoints/step_002920/meta_002920.json").read_text()
    assert (info["step"], info["vocab_size"]) == (2920, 32)
    assert f'"val_loss": {info["val_loss"]}' in meta
    overview = httpx.get(f"{url}/").json()
    assert (overview["service"], overview["status"], len(overview["endpoints"])) == ("Inference API", "running", 4)
    assert "swagger" in httpx.get(f"{url}/docs").text.lower()
    assert "/generate" in httpx.get(f"{url}/openapi.json").json()["paths"]


def test_the_test_script(url: str) -> None:
    assert shutil.which("curl"), "the guide's script needs curl"
    run = subprocess.run(
        ["bash", "-c", TEST_SCRIPT.format(url=url)], capture_output=True, text=True, timeout=60, check=True
    )
    assert '"generated_text": "123+456=579"' in run.stdout


@pytest.mark.skipif(shutil.which("node") is None, reason="Node.js, which is not part of the project, runs it")
def test_the_javascript_example(url: str) -> None:
    script = ["node", "--input-type=module", "--eval", JAVASCRIPT.format(url=url)]
    run = subprocess.run(script, capture_output=True, text=True, timeout=60, check=True)
    assert run.stdout.strip() == "123+456=579"


def test_a_browser_may_call_from_a_page_of_this_machine(url: str) -> None:
    page = {"Origin": "http://localhost:3000"}
    request_headers = {
        **page,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "content-type",
    }
    preflight = httpx.options(f"{url}/generate", headers=request_headers)
    assert preflight.status_code == 200
    assert preflight.headers["access-control-allow-origin"] == page["Origin"]
    assert "content-type" in preflight.headers["access-control-allow-headers"].lower()
    response = httpx.post(f"{url}/generate", json=BODIES[0], headers=page)
    assert response.headers["access-control-allow-origin"] == page["Origin"]
    other = httpx.post(f"{url}/generate", json=BODIES[0], headers={"Origin": "http://example.org"})
    assert (other.status_code, other.headers.get("access-control-allow-origin")) == (403, None)


def test_the_python_example(url: str) -> None:
    with InferenceClient(url) as client:
        result = client.generate(prompt="123+456=", max_tokens=20, temperature=0.0)
    assert result["generated_text"] == "123+456=579"


def test_health_responds_at_once_while_64_generations_run(url: str) -> None:
    body = {"prompt": "123+", "max_tokens": 200, "ignore_eos": True}
    jobs = [httpx.post(f"{url}/v1/jobs", json=body).json()["urls"] for _ in range(64)]
    waits = []
    for _ in range(20):
        response = httpx.get(f"{url}/health")
        assert response.json()["model_loaded"]
        waits.append(response.elapsed.total_seconds())
    for urls in jobs:
        assert httpx.get(f"{url}{urls['self']}?wait=60", timeout=90).json()["status"] == "succeeded"
    # This does not measure speed: with a blocked event loop each request would take seconds.
    assert sorted(waits)[len(waits) // 2] < 1.0


def test_the_bench_of_a_server_reports_a_row_for_each_concurrency(url: str) -> None:
    options = ["--url", url, "--concurrency", "1,4", "--requests", "8", "--max-tokens", "5"]
    command = [sys.executable, "-m", "bench.serve", *options]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=True)
    rows = json.loads(run.stdout.splitlines()[-1])["rows"]
    assert [row["concurrency"] for row in rows] == [1, 4]
    assert all(row["tokens_per_s"] > row["requests_per_s"] > 0 for row in rows)


@pytest.mark.slow
def test_model_selects_one_of_two_checkpoints(url: str, tmp_path: Path) -> None:
    """Two workers on one Redis serve two checkpoints; a request without `model` is then an error."""
    found = httpx.get(f"{url}/v1/workers").json()["data"]
    assert [worker["model"] for worker in found] == ["step_002920"]
    with running_redis(tmp_path) as redis_url:
        stack = Stack(f"{redis_url}?db=0", tmp_path)
        try:
            stack.worker("step_002920", wait=False)
            stack.worker("step_003650")
            stack.processes[0].wait_for_line("ready.")
            _, both = stack.api()
            body = {**BODIES[0], "model": "step_003650"}
            assert httpx.post(f"{both}/generate", json=body).json()["model"] == "step_003650"
            refused = httpx.post(f"{both}/generate", json=BODIES[0])
            assert refused.status_code == 422
            assert "step_002920" in refused.text
            assert "step_003650" in refused.text
        finally:
            stack.close()
