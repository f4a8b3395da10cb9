"""Settings of real processes that are empty, misspelt or contradictory: what each role prints, and how it ends."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tasks.settings import Settings
from tests.helpers.combinations import each_value_once
from tests.integration.stack import ROOT, START_S, Process, Stack, free_port, until

CHECKPOINT = Path(__file__).parents[2] / "fixtures" / "golden" / "E1b-seed" / "step_000102"
CELERIAC = (sys.executable, "-m", "celeriac")
WARNING = "Warning: Celeriac has no setting CELERIAC_SLOT (did you mean CELERIAC_SLOTS?)"
SECRET = "a-value-that-is-not-printed"
CELERY_OPTIONS = ("--pool", "threads", "--without-gossip", "--without-mingle")

#: For each role: a command that runs it, and a text in its output when it runs. `PORT` is a free port.
ROLES = {
    "api": ([*CELERIAC, "api", "--port", "PORT"], "Application startup complete"),
    "api with --reload": ([*CELERIAC, "api", "--reload", "--port", "PORT"], "Application startup complete"),
    "uvicorn": ([sys.executable, "-m", "uvicorn", "api.app:app", "--port", "PORT"], "Application startup complete"),
    "worker": ([*CELERIAC, "worker"], " ready."),
    "celery": ([sys.executable, "-m", "celery", "-A", "worker.app", "worker", *CELERY_OPTIONS], " ready."),
    "serve": ([*CELERIAC, "serve", "--port", "PORT"], "Celeriac is ready"),
    "flower": ([*CELERIAC, "flower", "--port", "PORT"], None),
    "run": ([*CELERIAC, "run", str(CHECKPOINT), "--prompt", "a", "--max-tokens", "1"], None),
}


@pytest.fixture
def stack(redis_url: str, tmp_path: Path) -> Iterator[Stack]:
    stack = Stack(redis_url, tmp_path, checkpoint=str(CHECKPOINT))
    yield stack
    stack.close()


def start(stack: Stack, role: str, **settings: str) -> tuple[Process, str]:
    """Start a role. Returns it, and the URL of its port."""
    port = str(free_port())
    command = [port if part == "PORT" else part for part in ROLES[role][0]]
    return stack.run(role, *command, **settings), f"http://127.0.0.1:{port}"


def answers(url: str) -> httpx.Response | None:
    try:
        return httpx.get(url, trust_env=False)
    except httpx.TransportError:
        return None


@pytest.mark.parametrize("role", ROLES)
def test_each_role_names_a_misspelt_setting_once(stack: Stack, role: str) -> None:
    process, url = start(stack, role, slot=SECRET)
    if role == "run":
        assert process.wait(START_S) == 0
    elif role == "flower":
        until(lambda: answers(f"{url}/healthcheck"), f"Flower:\n{process.output}", timeout_s=START_S)
    else:
        line = ROLES[role][1]
        assert line is not None
        process.wait_for_line(line)
    assert process.output.count("CELERIAC_SLOT ") == 1, process.output
    assert WARNING in process.output.splitlines(), process.output
    assert SECRET not in process.output


#: Settings that no role accepts which uses them, and the beginning of the message about each.
INVALID: tuple[tuple[dict[str, str], str], ...] = (
    (
        {"heartbeat_s": "2"},
        "CELERIAC_LEASE_S (5, the default) must be at least 3 times CELERIAC_HEARTBEAT_S (2), because ",
    ),
    ({"slots": "many"}, "CELERIAC_SLOTS: "),
    ({"allowed_hosts": "x"}, "A CELERIAC_* variable cannot be read: "),
    ({"cors_origins": '["https://a.example/"]'}, "CELERIAC_CORS_ORIGINS: "),
    ({"redis_url": "http://host"}, "CELERIAC_REDIS_URL: "),
)


@pytest.mark.parametrize(("role", "invalid"), each_value_once([*ROLES], INVALID))
def test_each_role_refuses_invalid_settings(stack: Stack, role: str, invalid: tuple[dict[str, str], str]) -> None:
    settings, message = invalid
    if role == "run" and "redis_url" in settings:
        pytest.skip("this role does not use the queue")
    process, _ = start(stack, role, **settings)
    assert process.wait(START_S) == 2, process.output
    assert process.output.startswith(f"Error: {message}"), process.output
    assert process.output.count("\n") == 1, process.output


def test_run_does_not_use_the_queue_and_ignores_its_url(stack: Stack) -> None:
    process, _ = start(stack, "run", redis_url="http://host")
    assert process.wait(START_S) == 0, process.output


def test_the_api_and_a_worker_run_when_all_other_settings_are_empty(stack: Stack) -> None:
    kept = ("redis_url", "checkpoint", "checkpoint_dir")
    empty = dict.fromkeys((name for name in Settings.model_fields if name not in kept), "")
    stack.worker(str(CHECKPOINT), **empty)
    _, url = stack.api(**empty)
    answer = httpx.post(f"{url}/generate", json={"prompt": "a", "max_tokens": 1}, timeout=30, trust_env=False)
    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize("command", [["serve"], ["worker"]])
def test_an_empty_checkpoint_counts_as_missing(stack: Stack, command: list[str]) -> None:
    process = stack.run("worker", *CELERIAC, *command, checkpoint="")
    assert process.wait(START_S) == 2
    assert "Error: Give the checkpoint to serve: " in process.output


def test_an_empty_variable_of_flower_counts_as_unset(redis_url: str, tmp_path: Path) -> None:
    """For the options of the command, and for the variables that only Flower reads."""
    port = free_port()
    command = [*CELERIAC, "flower", "--port", str(port)]
    empty = dict.fromkeys(("FLOWER_BASIC_AUTH", "FLOWER_URL_PREFIX", "FLOWER_MAX_WORKERS"), "")
    process = Process("flower", command, env={"CELERIAC_REDIS_URL": redis_url, **empty}, log_dir=tmp_path)
    try:

        def page() -> httpx.Response | None:
            assert process.returncode is None, process.output
            return answers(f"http://127.0.0.1:{port}/workers")

        assert until(page, "Flower", timeout_s=START_S).status_code == 200
    finally:
        process.kill()


def test_empty_colour_variables_count_as_unset() -> None:
    code = "import structlog; from tasks.logs import setup_logging; from tasks.settings import settings; "
    code += "setup_logging(settings()); structlog.get_logger('x').info('an_event')"
    environment = {"CELERIAC_LOG_FORMAT": "console", "FORCE_COLOR": ""}
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=START_S
    )
    assert found.returncode == 0, found.stderr
    assert "an_event" in found.stderr
    assert "\x1b" not in found.stderr
