"""The API runs without torch, and uses little memory."""

from __future__ import annotations

import subprocess
import sys
import venv
from pathlib import Path

import httpx
import pytest

from tests.integration.stack import ROOT, Process, free_port, until

#: Most memory that an API process may use, in MB.
MEMORY_LIMIT_MB = 150


def serve_api(python: Path | str, redis_url: str, log_dir: Path, cwd: Path) -> tuple[Process, str]:
    """Start an API process with the interpreter `python`. Returns it and its URL once it answers."""
    port = free_port()
    command = [str(python), "-m", "uvicorn", "api.app:app", "--port", str(port)]
    process = Process("api", command, env={"CELERIAC_REDIS_URL": redis_url}, log_dir=log_dir, cwd=cwd)
    url = f"http://127.0.0.1:{port}"

    def live() -> bool:
        assert process.returncode is None, process.output
        try:
            return httpx.get(f"{url}/health/live").status_code == 200
        except httpx.TransportError:
            return False

    until(live, "the first answer of the API", timeout_s=60)
    return process, url


def test_the_api_never_imports_torch_and_uses_little_memory(redis_url: str, tmp_path: Path) -> None:
    process, url = serve_api(sys.executable, redis_url, tmp_path, ROOT)
    try:
        assert httpx.get(f"{url}/docs").status_code == 200
        assert httpx.get(f"{url}/v1/jobs").status_code == 200
        assert "libtorch" not in Path(f"/proc/{process.pid}/maps").read_text()
        status = Path(f"/proc/{process.pid}/status").read_text()
        resident_mb = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS")) / 1024
        assert resident_mb < MEMORY_LIMIT_MB
    finally:
        process.kill()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_api_extra_alone_is_enough(redis_url: str, tmp_path: Path) -> None:
    """In a new environment with only `pip install .[api]`: without torch and tiktoken."""
    environment = tmp_path / "venv"
    venv.create(environment, with_pip=True)
    python = environment / "bin" / "python"
    constraints = ROOT / "constraints.txt"
    install = [python, "-m", "pip", "install", "--quiet", "--constraint", constraints, f"{ROOT}[api]"]
    subprocess.run(install, check=True, timeout=600)
    listed = subprocess.run([python, "-m", "pip", "list"], check=True, capture_output=True, text=True).stdout
    assert "celeriac" in listed
    assert "torch" not in listed
    assert "tiktoken" not in listed
    # For the published tokenizers of checkpoints.
    assert "tokenizers" in listed
    # Started outside the checkout, so that the installed package runs.
    process, url = serve_api(python, redis_url, tmp_path, tmp_path)
    try:
        assert httpx.get(f"{url}/openapi.json").status_code == 200
        answer = httpx.post(f"{url}/generate", json={"prompt": "1+1="})
        assert (answer.status_code, answer.json()["detail"]) == (503, "Model not loaded")
    finally:
        process.kill()
