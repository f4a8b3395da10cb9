"""docker-compose.yml: it is valid and safe, and each `celeriac` command in it runs with its environment."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.integration.stack import ROOT, Process, free_port, until

COMPOSE = ROOT / "docker-compose.yml"
ENVIRONMENT = {"FLOWER_PASSWORD": "for-this-test"}
_VARIABLE = re.compile(r"\$\{(\w+)(?::([-?])([^}]*))?\}")


def interpolate(text: str) -> str:
    """Substitute variables as Compose does, for the forms that the file uses."""

    def value(match: re.Match[str]) -> str:
        name, kind, rest = match.groups()
        if name in ENVIRONMENT:
            return ENVIRONMENT[name]
        assert kind == "-", f"{name} has no default"
        return str(rest)

    return _VARIABLE.sub(value, text)


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    content = yaml.safe_load(interpolate(COMPOSE.read_text()))
    found: dict[str, Any] = content["services"]
    return found


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


def test_each_gpu_has_its_own_worker_service(services: dict[str, Any]) -> None:
    gpu_workers = [service for service in services.values() if service.get("profiles") == ["nvidia"]]
    devices = [s["deploy"]["resources"]["reservations"]["devices"][0]["device_ids"] for s in gpu_workers]
    assert devices == [["0"], ["1"]]
    assert "profiles" not in services["worker"]


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

    def __init__(self, services: dict[str, Any], redis_url: str, folder: Path) -> None:
        self._services = services
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
            "/checkpoints": str(ROOT / "checkpoints"),
            "/tmp/celeriac-worker-alive": str(self._folder / "alive"),
        }
        environment = {key: moved.get(value, value) for key, value in service["environment"].items()}
        process = Process(name, [sys.executable, "-m", *command], env=environment, log_dir=self._folder)
        self.processes.append(process)
        return process, port


def test_every_command_runs_with_its_environment(services: dict[str, Any], redis_url: str, tmp_path: Path) -> None:
    local = Local(services, redis_url, tmp_path)
    try:
        worker, _ = local.start("worker")
        _, api_port = local.start("api")
        flower, flower_port = local.start("flower")
        api_url, flower_url = f"http://127.0.0.1:{api_port}", f"http://127.0.0.1:{flower_port}"

        def status_of(url: str, **options: Any) -> int | None:
            try:
                return httpx.get(url, **options).status_code
            except httpx.TransportError:
                return None

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
