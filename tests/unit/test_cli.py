"""The command line: what it prints where, and its exit codes. The server is a transport of the test's own."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import httpx
import pytest
from click.testing import CliRunner, Result

from celeriac.cli import main
from celeriac.client import sync_client
from tasks.settings import settings
from tests.job_objects import JOB_ID, QUEUED, RUNNING, SUCCEEDED, job_object

Answers = Callable[[httpx.Request], httpx.Response]


class Shell:
    """Runs commands against scripted answers, and keeps the requests."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.answers: Iterator[httpx.Response | BaseException] = iter(())
        self.requests: list[httpx.Request] = []
        real = httpx.Client

        def client(**options: Any) -> httpx.Client:
            return real(**{**options, "transport": httpx.MockTransport(self._answer)})

        monkeypatch.setattr(sync_client.httpx, "Client", client)
        monkeypatch.setattr(sync_client.time, "sleep", lambda _: None)

    def __call__(
        self, *args: str, answers: list[httpx.Response | BaseException] | None = None, stdin: str = ""
    ) -> Result:
        self.answers = iter(answers or [])
        return CliRunner().invoke(main, args, input=stdin, prog_name="celeriac")

    def _answer(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        answer = next(self.answers)
        if isinstance(answer, BaseException):
            raise answer
        return answer


@pytest.fixture
def shell(monkeypatch: pytest.MonkeyPatch) -> Iterator[Shell]:
    monkeypatch.delenv("CELERIAC_URL", raising=False)
    settings.cache_clear()
    yield Shell(monkeypatch)
    settings.cache_clear()


def ok(body: Any, status: int = 200) -> httpx.Response:
    return httpx.Response(status, json=body)


def test_generate_prints_the_text_alone_on_stdout(shell: Shell) -> None:
    answers = [ok(job_object(QUEUED), 202), ok(job_object(RUNNING)), ok(job_object(SUCCEEDED))]
    result = shell("generate", "1+1=", "--temperature", "0", "--stop", "a", "--stop", "b", answers=answers)
    assert (result.exit_code, result.stdout) == (0, "1+1=2\n\n")
    assert result.stderr.splitlines() == [f"{JOB_ID} running on w@host", f"{JOB_ID} succeeded"]
    body = json.loads(shell.requests[0].content)
    assert (body["prompt"], body["temperature"], body["stop"]) == ("1+1=", 0.0, ["a", "b"])


def test_generate_in_json_is_the_guides_dictionary(shell: Shell) -> None:
    result = shell("generate", "1+1=", "--json", answers=[ok(job_object(SUCCEEDED))])
    assert json.loads(result.stdout) == {
        "prompt": "1+1=",
        "generated_text": "1+1=2\n",
        "tokens_generated": 2,
        "model": "step_002920",
    }


def test_a_prompt_from_the_standard_input(shell: Shell) -> None:
    shell("generate", "-", answers=[ok(job_object(SUCCEEDED))], stdin="two\nlines\n")
    assert json.loads(shell.requests[0].content)["prompt"] == "two\nlines\n"


def test_ctrl_c_on_generate_cancels_the_job(shell: Shell) -> None:
    answers: list[httpx.Response | BaseException] = [
        ok(job_object(QUEUED), 202),
        KeyboardInterrupt(),
        ok(job_object(QUEUED)),
    ]
    result = shell("generate", "1+1=", answers=answers)
    assert result.exit_code == 1
    assert shell.requests[-1].url.path == f"/v1/jobs/{JOB_ID}/cancel"


def test_warnings_of_a_job_are_shown(shell: Shell) -> None:
    result = shell("submit", "1+1=", answers=[ok(job_object(QUEUED, warnings=("'=' was left out.",)), 202)])
    assert (result.stdout, result.stderr) == (f"{JOB_ID}\n", "Warning: '=' was left out.\n")


def test_watch_prints_the_text_and_fails_where_the_job_did(shell: Shell) -> None:
    cancelled = job_object(SUCCEEDED, status="cancelled", completion="2")
    result = shell("watch", JOB_ID, answers=[ok(job_object(RUNNING)), ok(job_object(RUNNING)), ok(cancelled)])
    assert (result.exit_code, result.stdout) == (1, "1+1=2\n")
    assert f"Error: {JOB_ID} is cancelled\n" in result.stderr


def test_cancel_tells_what_became_of_each(shell: Shell) -> None:
    cancelled = job_object(SUCCEEDED, status="cancelled")
    result = shell("cancel", "a", "b", answers=[ok(job_object(RUNNING), 202), ok(cancelled)])
    assert (result.exit_code, result.stdout) == (0, f"{JOB_ID}\tstopping\n{JOB_ID}\tcancelled\n")


def test_jobs_are_lines_for_other_programs(shell: Shell) -> None:
    page = {"data": [job_object(QUEUED), job_object(SUCCEEDED)], "next_cursor": None}
    result = shell("jobs", "--status", "queued", "--limit", "5", answers=[ok(page)])
    head, first, second = result.stdout.splitlines()
    assert head.split("\t") == ["ID", "STATUS", "TOKENS", "MODEL", "CREATED", "PROMPT"]
    assert first.split("\t")[:4] == [JOB_ID, "queued, 3 ahead", "0/8", "step_002920"]
    assert second.split("\t")[1] == "succeeded, newline"
    assert dict(shell.requests[0].url.params) == {"status": "queued", "limit": "5"}


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (ok({"detail": [{"loc": ["body", "top_k"], "msg": "Too large"}]}, 422), "Error: top_k: Too large\n"),
        (httpx.ConnectError("refused"), "Error: No server answers at http://127.0.0.1:8000."),
    ],
)
def test_errors_are_one_line_and_exit_code_1(shell: Shell, answer: Any, message: str) -> None:
    result = shell("jobs", answers=[answer] * 20)
    assert result.exit_code == 1
    assert result.stderr.startswith(message)
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "command",
    [
        "generate",
        "generate 1 --max-tokens 0",
        "generate 1 --max-tokens 2049",
        "generate 1 --temperature 3",
        "generate 1 --top-p 0",
        "jobs --status finished",
        "jobs --url localhost:8000",
        "worker",
        "serve",
        "serve --checkpoint x --port 0",
        "serve --checkpoint x --port 80 --flower --flower-port 80",
        "run x",
        "run x --prompt a --token-ids 1",
        "run x --token-ids 1,a",
        "run x --prompt a --logits",
        "run x --interactive --json",
        "nonsense",
    ],
)
def test_a_wrong_command_line_is_exit_code_2(shell: Shell, command: str) -> None:
    result = shell(*command.split())
    assert result.exit_code == 2, result.output
    assert "Error: " in result.stderr
    assert shell.requests == []


@pytest.mark.parametrize("command", ["api", "flower", "worker --checkpoint x", "serve --checkpoint x"])
@pytest.mark.parametrize(("name", "value"), [("CELERIAC_SLOTS", "many"), ("CELERIAC_REDIS_URL", "http://host")])
def test_a_wrong_setting_is_named(
    shell: Shell, monkeypatch: pytest.MonkeyPatch, command: str, name: str, value: str
) -> None:
    # The front end's image has no worker package.
    if command in ("api", "flower"):
        monkeypatch.setitem(sys.modules, "worker", None)
    for chosen in ("CHECKPOINT", "DEVICE"):
        # `worker` sets these for its children; monkeypatch takes them back.
        monkeypatch.setenv(f"CELERIAC_{chosen}", "auto")
    monkeypatch.setenv(name, value)
    settings.cache_clear()
    result = shell(*command.split())
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith(f"Error: {name}: ")
    assert result.stderr.count("\n") == 1


def test_every_command_and_option_has_a_help_text_and_is_in_the_reference() -> None:
    assert " ".join(main.commands) == "serve api worker flower run inspect generate submit watch cancel jobs"
    reference = (Path(__file__).parents[2] / "docs" / "reference" / "commands.md").read_text()
    for name, command in main.commands.items():
        assert command.get_short_help_str(), name
        assert f"celeriac {name}" in reference
        for parameter in command.params:
            if isinstance(parameter, click.Option):
                assert parameter.help, f"{name} {parameter.opts}"
                assert parameter.opts[0] in reference, f"{name} {parameter.opts}"


def test_the_command_line_starts_without_the_heavy_packages() -> None:
    heavy = ["torch", "celery", "redis", "fastapi", "uvicorn", "httpx", "rich", "pydantic"]
    code = f"import sys, celeriac.cli; print([m for m in {heavy!r} if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert found == "[]\n"
