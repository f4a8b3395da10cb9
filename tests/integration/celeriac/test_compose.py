"""docker-compose.yml: it is valid and safe, and each `celeriac` command in it runs with its environment."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.integration.stack import ROOT, Process, free_port, until

COMPOSE = ROOT / "docker-compose.yml"
ENVIRONMENT = {"FLOWER_PASSWORD": "for-this-test"}
_VARIABLE = re.compile(r"\$\{(\w+)(?::([-?])([^}]*))?\}")


def interpolate(text: str, variables: Mapping[str, str]) -> str:
    """Substitute variables as Compose does, for the forms that the file uses."""

    def value(match: re.Match[str]) -> str:
        name, kind, rest = match.groups()
        if variables.get(name):
            return variables[name]
        assert kind == "-", f"{name} has no default"
        return str(rest)

    return _VARIABLE.sub(value, text)


def services_with(variables: Mapping[str, str]) -> dict[str, Any]:
    """The services as Compose starts them with these variables in `.env`."""
    content = yaml.safe_load(interpolate(COMPOSE.read_text(), variables))
    found: dict[str, Any] = content["services"]
    return found


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    return services_with(ENVIRONMENT)


def test_the_file_is_valid() -> None:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(COMPOSE)]
    check = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert check.returncode == 0, check.stdout


def test_redis_is_append_only_never_evicts_and_is_not_published(services: dict[str, Any]) -> None:
    redis = services["redis"]
    command = " ".join(redis["command"])
    assert "--appendonly yes" in command
    assert "--maxmemory-policy noeviction" in command
    assert "ports" not in redis
    assert redis["volumes"] == ["redis-data:/data"]


def test_ports_are_published_only_on_loopback(services: dict[str, Any]) -> None:
    ports = [port for service in services.values() for port in service.get("ports", [])]
    assert ports
    assert all(port.startswith("127.0.0.1:") for port in ports)


def test_every_service_has_a_health_check_and_restarts(services: dict[str, Any]) -> None:
    assert all("healthcheck" in service and service["restart"] == "unless-stopped" for service in services.values())


@pytest.mark.parametrize(("profile", "gpus"), [("nvidia", ["0"]), ("nvidia-2", ["0", "1"])])
def test_each_gpu_has_its_own_worker_service(services: dict[str, Any], profile: str, gpus: list[str]) -> None:
    """A machine with one GPU cannot start a service that asks for a second one."""
    started = [service for service in services.values() if profile in service.get("profiles", [])]
    devices = [service["deploy"]["resources"]["reservations"]["devices"][0] for service in started]
    assert [device["device_ids"] for device in devices] == [[gpu] for gpu in gpus]
    assert "profiles" not in services["worker"]


def test_the_example_explains_every_variable_with_its_default() -> None:
    example = (ROOT / ".env.example").read_text()
    explained = dict(re.findall(r"^(\w+)=(.*)$", example, re.MULTILINE))
    used = {name: rest if kind == "-" else "" for name, kind, rest in _VARIABLE.findall(COMPOSE.read_text())}
    assert explained == used
    # Each block of variables has a comment above it.
    assert all(block.startswith("#") for block in example.split("\n\n"))


def test_the_readme_says_that_a_file_with_the_password_is_needed() -> None:
    readme = (ROOT / "README.md").read_text()
    assert readme.index("cp .env.example .env") < readme.index("docker compose up")


def test_flower_needs_a_password() -> None:
    assert "${FLOWER_PASSWORD:?" in COMPOSE.read_text()


def test_the_images_run_as_a_user_and_the_api_image_has_no_torch() -> None:
    dockerfile = (ROOT / "Dockerfile").read_text()
    stages = re.split(r"^FROM ", dockerfile, flags=re.MULTILINE)[1:]
    api, worker = (next(stage for stage in stages if f"AS {name}" in stage) for name in ("api", "worker"))
    assert "USER celeriac" in api
    assert "USER celeriac" in worker
    assert "[api,flower]" in api
    assert "[worker]" in worker
    assert "worker worker" not in api


class Local:
    """Runs the services as local processes, with the same commands and environments but other addresses."""

    def __init__(
        self, services: dict[str, Any], redis_url: str, folder: Path, *, checkpoints: Path = ROOT / "checkpoints"
    ) -> None:
        self._services = services
        self._checkpoints = checkpoints
        self._redis_url = redis_url
        self._folder = folder
        self.processes: list[Process] = []

    def start(self, name: str) -> tuple[Process, int]:
        service, port = self._services[name], free_port()
        command = list(service["command"])
        assert command[0] == "celeriac"
        if "--port" in command:
            command[command.index("--port") + 1] = str(port)
            command = ["127.0.0.1" if part == "0.0.0.0" else part for part in command]
        moved = {
            "redis://redis:6379/0": self._redis_url,
            "/checkpoints": str(self._checkpoints),
            "/tmp/celeriac-worker-alive": str(self._folder / "alive"),
        }
        environment = {key: moved.get(value, value) for key, value in service["environment"].items()}
        process = Process(name, [sys.executable, "-m", *command], env=environment, log_dir=self._folder)
        self.processes.append(process)
        return process, port


def status_of(url: str, **options: Any) -> int | None:
    """The status of a URL; None if nothing answers there."""
    try:
        return httpx.get(url, **options).status_code
    except httpx.TransportError:
        return None


def test_every_command_runs_with_its_environment(services: dict[str, Any], redis_url: str, tmp_path: Path) -> None:
    local = Local(services, redis_url, tmp_path)
    try:
        worker, _ = local.start("worker")
        _, api_port = local.start("api")
        flower, flower_port = local.start("flower")
        api_url, flower_url = f"http://127.0.0.1:{api_port}", f"http://127.0.0.1:{flower_port}"

        until(lambda: status_of(f"{api_url}/health/ready") == 200, "a ready API", timeout_s=90)
        response = httpx.post(f"{api_url}/generate", json={"prompt": "123+456=", "max_tokens": 20, "temperature": 0.0})
        assert response.json()["generated_text"] == "123+456=579"

        alive = tmp_path / "alive"
        until(alive.exists, "the worker's health file")
        probe = [sys.executable, *services["worker"]["healthcheck"]["test"][2:]]
        environment = {"CELERIAC_HEALTH_FILE": str(alive), "PATH": ""}
        assert subprocess.run(probe, cwd=ROOT, env=environment, timeout=60).returncode == 0

        until(lambda: status_of(f"{flower_url}/healthcheck") == 200, "Flower", timeout_s=60)
        assert status_of(f"{flower_url}/workers") == 401
        assert status_of(f"{flower_url}/workers", auth=("flower", ENVIRONMENT["FLOWER_PASSWORD"])) == 200
        assert worker.terminate() == 0
        flower.terminate()
    finally:
        for process in local.processes:
            process.kill()


@pytest.mark.parametrize(
    ("variables", "name", "step"),
    [
        ({"CELERIAC_CHECKPOINT": "chatsft_checkpoints/d4"}, "d4-sft", 650),
        pytest.param(
            {"CELERIAC_CHECKPOINT": "/checkpoints/chatsft_checkpoints/d4@200"},
            *("d4-sft-200", 200),
            marks=pytest.mark.slow,
        ),
        pytest.param(
            {"CELERIAC_CHECKPOINT": "chatsft_checkpoints/d4", "CELERIAC_CHECKPOINT_NAME": "mine"},
            *("mine", 650),
            marks=pytest.mark.slow,
        ),
    ],
)
def test_the_folder_of_nanochat_is_served_with_the_tokenizer_in_it(
    redis_url: str, tmp_path: Path, variables: dict[str, str], name: str, step: int
) -> None:
    """The API answers requests without `model`, and `/health` agrees, whichever way the checkpoint is named."""
    nanochat = tmp_path / "nanochat"
    run = nanochat / "chatsft_checkpoints" / "d4"
    run.mkdir(parents=True)
    shipped = ROOT / "checkpoints" / "step_002920"
    for number in ("000200", "000650"):
        shutil.copy(shipped / "model_002920.pt", run / f"model_{number}.pt")
        shutil.copy(shipped / "meta_002920.json", run / f"meta_{number}.json")
    (nanochat / "tokenizer").mkdir()
    shutil.copy(shipped / "tokenizer_config.json", nanochat / "tokenizer")
    variables = {key: value.replace("/checkpoints/", f"{nanochat}/") for key, value in variables.items()}
    local = Local(services_with({**ENVIRONMENT, **variables}), redis_url, tmp_path, checkpoints=nanochat)
    try:
        local.start("worker")
        _, port = local.start("api")
        url = f"http://127.0.0.1:{port}"
        until(lambda: status_of(f"{url}/health/ready") == 200, "a ready API", timeout_s=90)
        assert httpx.get(f"{url}/health").json() == {"status": "ok", "model_loaded": True, "checkpoint": name}
        answer = httpx.post(f"{url}/generate", json={"prompt": "123+456=", "max_tokens": 20, "temperature": 0.0})
        assert answer.json()["generated_text"] == "123+456=579"
        assert httpx.get(f"{url}/info").json()["step"] == step
    finally:
        for process in local.processes:
            process.kill()
