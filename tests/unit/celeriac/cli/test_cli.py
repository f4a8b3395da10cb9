"""The command line over a mock transport: what it prints to stdout and stderr, and its exit codes."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import httpx
import pytest
from click.testing import CliRunner, Result

from celeriac.cli import main
from celeriac.cli.command import Command
from celeriac.cli.job_printer import JobPrinter
from celeriac.client import sync_client
from tasks.job import Status
from tasks.settings import settings
from tests.helpers.job_objects import JOB_ID, QUEUED, RUNNING, SUCCEEDED, job_object
from tests.helpers.stream_bytes import DONE_JOB, RETRY, TEXT, done, error, event, queue, status, tokens, whole


class Shell:
    """Runs commands against scripted responses, and records the requests."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.responses: Iterator[httpx.Response | BaseException] = iter(())
        self.requests: list[httpx.Request] = []
        real = httpx.Client

        def client(**options: Any) -> httpx.Client:
            return real(**{**options, "transport": httpx.MockTransport(self._respond)})

        monkeypatch.setattr(sync_client.httpx, "Client", client)
        monkeypatch.setattr(sync_client.time, "sleep", lambda _: None)

    def __call__(
        self, *args: str, responses: list[httpx.Response | BaseException] | None = None, stdin: str = ""
    ) -> Result:
        self.responses = iter(responses or [])
        return CliRunner().invoke(main, args, input=stdin, prog_name="celeriac")

    def _respond(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        response = next(self.responses)
        if isinstance(response, BaseException):
            raise response
        return response


@pytest.fixture
def shell(monkeypatch: pytest.MonkeyPatch) -> Iterator[Shell]:
    monkeypatch.delenv("CELERIAC_URL", raising=False)
    settings.cache_clear()
    yield Shell(monkeypatch)
    settings.cache_clear()


def ok(body: Any, status: int = 200) -> httpx.Response:
    return httpx.Response(status, json=body)


def stream(*parts: bytes) -> httpx.Response:
    return httpx.Response(200, headers={"Content-Type": "text/event-stream"}, content=b"".join(parts))


def states_of(result: Result) -> list[str]:
    """The state lines of the job."""
    lines = result.stderr.splitlines()
    assert all(line.startswith(f"{JOB_ID} ") for line in lines)
    return [line.removeprefix(f"{JOB_ID} ") for line in lines]


def running_on(worker: str, attempt: int = 1) -> bytes:
    return event("status", {"status": "running", "attempt": attempt, "worker": worker})


def test_generate_prints_only_the_text_to_stdout(shell: Shell) -> None:
    responses = [
        ok(job_object(QUEUED), 202),
        stream(queue(3), running_on("w@host"), tokens(0, 3), tokens(3, 5), done()),
    ]
    result = shell("generate", "1+1=", "--temperature", "0", "--stop", "a", "--stop", "b", responses=responses)
    assert (result.exit_code, result.stdout) == (0, f"1+1={TEXT}\n")
    assert states_of(result) == ["queued, 3 ahead", "running on w@host", "succeeded"]
    body = json.loads(shell.requests[0].content)
    assert (body["prompt"], body["temperature"], body["stop"]) == ("1+1=", 0.0, ["a", "b"])


def test_sampling_options_are_sent_only_if_they_are_given(shell: Shell) -> None:
    responses: list[httpx.Response | BaseException] = [ok(job_object(QUEUED), 202), ok(job_object(QUEUED), 202)]
    assert shell("submit", "1", responses=responses).exit_code == 0
    body = json.loads(shell.requests[0].content)
    assert not body.keys() & {"min_p", "logit_bias", "stop_token_ids", "min_tokens", "logprobs"}
    options = "--min-p 0.1 --logit-bias 5=-1.5 --logit-bias 7=100 --stop-token-id 3 --stop-token-id 4 --logprobs 0"
    assert shell("submit", "1", *options.split(), responses=responses).exit_code == 0
    body = json.loads(shell.requests[-1].content)
    assert (body["min_p"], body["logit_bias"], body["stop_token_ids"]) == (0.1, {"5": -1.5, "7": 100.0}, [3, 4])
    assert body["logprobs"] == 0


@pytest.mark.parametrize("bias", ["5", "5=", "=1", "x=1", "5=x", "5=nan", "5=100.5", "-1=1", "05=1", "5=1=2"])
def test_what_is_no_bias_is_refused(shell: Shell, bias: str) -> None:
    result = shell("submit", "1", f"--logit-bias={bias}", responses=[])
    assert (result.exit_code, result.stdout) == (2, "")
    assert "such as 42=-1.5" in " ".join(result.stderr.split())


def test_generate_in_json_is_the_guides_dictionary(shell: Shell) -> None:
    result = shell("generate", "1+1=", "--json", responses=[ok(job_object(QUEUED), 202), stream(whole())])
    assert json.loads(result.stdout) == {
        "prompt": "1+1=",
        "generated_text": f"1+1={TEXT}",
        "tokens_generated": 5,
        "model": "step_002920",
    }


def test_a_job_that_has_already_ended_is_not_streamed(shell: Shell) -> None:
    result = shell("generate", "1+1=", responses=[ok(job_object(SUCCEEDED))])
    assert (result.exit_code, result.stdout, result.stderr) == (0, "1+1=2\n\n", "")


def test_an_empty_continuation_prints_the_prompt(shell: Shell) -> None:
    empty = done(job_object(SUCCEEDED, completion=""))
    result = shell("generate", "1+1=", responses=[ok(job_object(QUEUED), 202), stream(status(), empty)])
    assert (result.exit_code, result.stdout) == (0, "1+1=\n")


def test_a_prompt_from_standard_input(shell: Shell) -> None:
    for stdin, prompt in (
        ("two\nlines\n", "two\nlines"),
        ("two\nlines", "two\nlines"),
        ("end\n\n", "end\n"),
        ("\n", ""),
    ):
        shell("generate", "-", responses=[ok(job_object(SUCCEEDED))], stdin=stdin)
        assert json.loads(shell.requests[-1].content)["prompt"] == prompt


def test_ctrl_c_on_generate_cancels_the_job(shell: Shell) -> None:
    responses: list[httpx.Response | BaseException] = [
        ok(job_object(QUEUED), 202),
        KeyboardInterrupt(),
        ok(job_object(QUEUED)),
    ]
    result = shell("generate", "1+1=", responses=responses)
    assert result.exit_code == 1
    assert shell.requests[-1].url.path == f"/v1/jobs/{JOB_ID}/cancel"


def test_warnings_of_a_job_are_printed(shell: Shell) -> None:
    result = shell("submit", "1+1=", responses=[ok(job_object(QUEUED, warnings=("'=' was left out.",)), 202)])
    assert (result.stdout, result.stderr) == (f"{JOB_ID}\n", "Warning: '=' was left out.\n")


def test_a_broken_pipe_on_generate_cancels_the_job(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    monkeypatch.setattr(JobPrinter, "print_text", broken)
    result = shell("generate", "1+1=", responses=[ok(job_object(QUEUED), 202), stream(whole()), ok(job_object(QUEUED))])
    assert result.exit_code == 1
    assert shell.requests[-1].url.path == f"/v1/jobs/{JOB_ID}/cancel"


def test_watch_prints_the_text_and_fails_if_the_job_does(shell: Shell) -> None:
    cancelled = job_object(SUCCEEDED, status=Status.CANCELLED, completion="5")
    result = shell("watch", JOB_ID, responses=[ok(job_object(RUNNING)), stream(tokens(0, 1), done(cancelled))])
    assert (result.exit_code, result.stdout) == (1, "1+1=5\n")
    *states, last = result.stderr.splitlines()
    assert states == [f"{JOB_ID} running on w@host", f"{JOB_ID} cancelled"]
    assert last == f"Error: {JOB_ID} is cancelled"


def test_watch_prints_only_the_error_of_a_job_that_failed_without_a_text(shell: Shell) -> None:
    failed = job_object(SUCCEEDED, status=Status.FAILED, completion="")
    failed["error"] = {"code": "prompt_too_long", "message": "The prompt is too long.", "retryable": False}
    for responses in ([ok(failed)], [ok(job_object(RUNNING)), stream(error("prompt_too_long"), done(failed))]):
        result = shell("watch", JOB_ID, responses=[*responses])
        assert (result.exit_code, result.stdout) == (1, "")
        assert result.stderr.endswith("failed: The prompt is too long. (prompt_too_long)\n")


def test_watch_in_json_prints_the_job_when_it_has_ended(shell: Shell) -> None:
    result = shell("watch", JOB_ID, "--json", responses=[ok(job_object(RUNNING)), stream(whole())])
    assert json.loads(result.stdout) == DONE_JOB
    assert states_of(result) == ["running on w@host", "succeeded"]


def test_watch_prints_the_states_of_the_job(shell: Shell) -> None:
    first = [
        RETRY,
        event("status", {"status": "queued", "attempt": 0}),
        queue(3, eta_start_s=0.2),
        queue(3, eta_start_s=0.1),
        queue(2, eta_start_s=150.0),
        running_on("w1@host"),
        tokens(0, 2),
        event("status", {"status": "queued", "attempt": 1}),
        queue(0),
    ]
    second = [
        event("attempt", {"attempt": 2, "resumed_from": 2, "worker": "w2@host"}, "2-1"),
        running_on("w2@host", 2),
        tokens(2, 5),
        done(),
    ]
    result = shell("watch", JOB_ID, responses=[ok(job_object(QUEUED)), stream(*first), stream(*second)])
    assert (result.exit_code, result.stdout) == (0, f"1+1={TEXT}\n")
    states = states_of(result)
    assert states.pop(5).startswith("reconnecting in 2 s: http://127.0.0.1:8000: the stream ended")
    assert (
        states
        == [
            "queued, 3 ahead",
            "queued, 2 ahead, starts in about 2 min",
            "running on w1@host",
            "queued again: its worker stopped or was lost",
            "queued, 0 ahead",
            "claimed again by w2@host, resumed from token 2",
            "running on w2@host",
            "succeeded",
        ]
        or states
    )


def test_an_interrupted_text_ends_with_a_newline(shell: Shell) -> None:
    gone = error("gone", "The job was deleted.", 410)
    result = shell("watch", JOB_ID, responses=[ok(job_object(RUNNING)), stream(tokens(0, 1), gone)])
    assert (result.exit_code, result.stdout) == (1, "1+1=5\n")
    assert result.stderr.endswith("Error: The job was deleted.\n")


def test_submit_sends_limits_in_seconds(shell: Shell) -> None:
    limits = "--deadline 60 --queue-timeout 0.5 --run-timeout 30 --max-queue-position 0"
    shell("submit", "1+1=", *limits.split(), responses=[ok(job_object(QUEUED), 202)])
    body = json.loads(shell.requests[0].content)
    assert (body["deadline_s"], body["queue_timeout_s"], body["run_timeout_s"], body["max_queue_position"]) == (
        60.0,
        0.5,
        30.0,
        0,
    )


def test_retry_prints_the_new_ids_and_stops_at_the_first_refusal(shell: Shell) -> None:
    refused = ok({"detail": "c has succeeded.", "code": "not_retryable"}, 409)
    responses = [ok(job_object(QUEUED, id=f"job_{n}"), 202) for n in (1, 2)]
    result = shell("retry", "a", "b", "c", "d", responses=[*responses, refused])
    assert (result.exit_code, result.stdout, result.stderr) == (1, "job_1\njob_2\n", "Error: c has succeeded.\n")
    assert [request.url.path for request in shell.requests] == [f"/v1/jobs/{id_}/retry" for id_ in "abc"]


def test_delete_prints_each_deleted_job(shell: Shell) -> None:
    result = shell("delete", "a", "b", responses=[httpx.Response(204), httpx.Response(204)])
    assert (result.exit_code, result.stdout) == (0, "a\tdeleted\nb\tdeleted\n")
    assert [(request.method, request.url.path) for request in shell.requests] == [
        ("DELETE", "/v1/jobs/a"),
        ("DELETE", "/v1/jobs/b"),
    ]


def test_cancel_prints_the_status_of_each_job(shell: Shell) -> None:
    cancelled = job_object(SUCCEEDED, status=Status.CANCELLED)
    result = shell("cancel", "a", "b", responses=[ok(job_object(RUNNING), 202), ok(cancelled)])
    assert (result.exit_code, result.stdout) == (0, f"{JOB_ID}\tstopping\n{JOB_ID}\tcancelled\n")


def test_jobs_prints_tab_separated_lines_without_a_terminal(shell: Shell) -> None:
    page = {"data": [job_object(QUEUED), job_object(SUCCEEDED)], "next_cursor": None}
    result = shell("jobs", "--status", "queued", "--limit", "5", responses=[ok(page)])
    head, first, second = result.stdout.splitlines()
    assert head.split("\t") == ["ID", "STATUS", "TOKENS", "MODEL", "CREATED", "PROMPT"]
    assert first.split("\t")[:4] == [JOB_ID, "queued, 3 ahead", "0/8", "step_002920"]
    assert second.split("\t")[1] == "succeeded, newline"
    assert dict(shell.requests[0].url.params) == {"status": "queued", "limit": "5"}


@pytest.mark.parametrize(
    ("response", "message"),
    [
        (ok({"detail": [{"loc": ["body", "top_k"], "msg": "Too large"}]}, 422), "Error: top_k: Too large\n"),
        (httpx.ConnectError("refused"), "Error: No server responds at http://127.0.0.1:8000."),
    ],
)
def test_errors_are_one_line_and_exit_code_1(shell: Shell, response: Any, message: str) -> None:
    result = shell("jobs", responses=[response] * 20)
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
        "submit 1 --deadline 0",
        "submit 1 --queue-timeout -1",
        "submit 1 --run-timeout soon",
        "submit 1 --max-queue-position -1",
        "retry",
        "delete",
        "jobs --status finished",
        "jobs --url localhost:8000",
        "jobs --url http://[::1",
        "jobs --url http://host:port",
        "jobs --url https://",
        "worker",
        "serve",
        "serve --checkpoint x --port 0",
        "serve x --name a --name b",
        "serve x y --name a",
        "serve x --port 1 --port 2",
        "worker x y",
        "worker x --checkpoint y",
        "worker --checkpoint x --checkpoint y",
        "worker x --name a --name b",
        "run x --prompt a --prompt b",
        "generate 1 --seed 1 --seed 2",
        "jobs --url http://a --url http://b",
        "serve --checkpoint x --port 80 --flower --flower-port 80",
        "run x",
        "run x --prompt a --token-ids 1",
        "run x --token-ids 1,a",
        "run x --prompt a --logits",
        "run x --interactive --json",
        "unknown",
    ],
)
def test_a_wrong_command_line_is_exit_code_2(shell: Shell, command: str) -> None:
    result = shell(*command.split())
    assert result.exit_code == 2, result.output
    assert "Error: " in result.stderr
    assert shell.requests == []


@pytest.mark.parametrize("command", ["api", "flower", "worker --checkpoint x", "serve --checkpoint x"])
@pytest.mark.parametrize(("name", "value"), [("CELERIAC_SLOTS", "many"), ("CELERIAC_REDIS_URL", "http://host")])
def test_an_error_names_the_invalid_setting(
    shell: Shell, monkeypatch: pytest.MonkeyPatch, command: str, name: str, value: str
) -> None:
    # The API image does not contain the worker package.
    if command in ("api", "flower"):
        monkeypatch.setitem(sys.modules, "worker", None)
    for chosen in ("CHECKPOINT", "DEVICE"):
        # `worker` sets these variables for its children; monkeypatch restores them.
        monkeypatch.setenv(f"CELERIAC_{chosen}", "auto")
    monkeypatch.setenv(name, value)
    settings.cache_clear()
    result = shell(*command.split())
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith(f"Error: {name}: ")
    assert result.stderr.count("\n") == 1


#: Each option that has an environment variable: its command and the variable.
FROM_ENVIRONMENT = [
    (name, parameter.envvar)
    for name, command in main.commands.items()
    for parameter in command.params
    if isinstance(parameter.envvar, str)
]


@pytest.mark.parametrize(("name", "variable"), FROM_ENVIRONMENT)
def test_an_empty_variable_of_an_option_counts_as_unset(
    monkeypatch: pytest.MonkeyPatch, name: str, variable: str
) -> None:
    command = main.commands[name]
    required = ["x" for parameter in command.params if isinstance(parameter, click.Argument) and parameter.required]

    def parsed() -> Any:
        try:
            return command.make_context(name, list(required)).params
        except click.UsageError as error:
            return error.format_message()

    for _, other in FROM_ENVIRONMENT:
        monkeypatch.delenv(other, raising=False)
    unset = parsed()
    monkeypatch.setenv(variable, "")
    assert parsed() == unset


def test_every_command_and_option_has_a_help_text_and_is_in_the_reference() -> None:
    assert " ".join(main.commands) == (
        "serve demo api worker flower run inspect convert export export-tokenizer "
        "generate chat submit watch cancel retry delete jobs"
    )
    reference = (Path(__file__).parents[4] / "docs" / "reference" / "commands.md").read_text()
    for name, command in main.commands.items():
        assert command.get_short_help_str(), name
        assert f"celeriac {name}" in reference
        for parameter in command.params:
            if isinstance(parameter, click.Option):
                assert parameter.help, f"{name} {parameter.opts}"
                assert parameter.opts[0] in reference, f"{name} {parameter.opts}"


def test_the_command_line_starts_without_heavy_packages() -> None:
    heavy = ["torch", "celery", "redis", "fastapi", "uvicorn", "httpx", "rich", "pydantic"]
    code = f"import sys, celeriac.cli; print([m for m in {heavy!r} if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert found == "[]\n"


def test_every_command_refuses_an_option_that_is_given_twice_and_would_lose_a_value() -> None:
    assert all(type(command) is Command for command in main.commands.values())
    for name, command in main.commands.items():
        for parameter in command.params:
            if not isinstance(parameter, click.Option) or parameter.multiple or parameter.is_flag:
                continue
            twice = [parameter.opts[0], "1"] * 2
            with pytest.raises(click.UsageError, match=f"{parameter.opts[0]} is given 2 times"):
                command.make_context(name, ["x", *twice])


@pytest.mark.parametrize(
    ("line", "chosen"),
    [
        ("serve a", ("a",)),
        ("serve a b --checkpoint c --checkpoint d", ("a", "b", "c", "d")),
        ("serve --checkpoint c", ("c",)),
        ("worker a", ("a",)),
        ("worker --checkpoint a", ("a",)),
        ("worker", ()),
    ],
)
def test_checkpoints_are_arguments_and_options(line: str, chosen: tuple[str, ...]) -> None:
    name, *words = line.split()
    assert main.commands[name].make_context(name, words).params["checkpoints"] == chosen


@pytest.mark.parametrize("command", ["generate", "submit"])
def test_a_prompt_that_begins_with_a_dash_is_told_the_way(shell: Shell, command: str) -> None:
    result = shell(command, "-5+3=")
    assert result.exit_code == 2
    assert "a prompt that begins with a dash after it" in result.stderr
    assert shell(command, "--", "-5+3=", responses=[ok(job_object(SUCCEEDED))]).exit_code == 0
    assert json.loads(shell.requests[-1].content)["prompt"] == "-5+3="
    assert "a dash" not in shell(command, "--max-tokns", "3", "1").stderr


def test_generate_says_at_once_that_no_worker_serves_the_model(shell: Shell, caplog: pytest.LogCaptureFixture) -> None:
    away = {"detail": "Model not loaded: no worker serves x now.", "code": "no_workers"}
    busy = httpx.Response(503, json=away, headers={"Retry-After": "2"})
    shell("generate", "1", responses=[busy, busy, ok(job_object(SUCCEEDED))])
    assert caplog.messages == ["Model not loaded: no worker serves x now. Trying again for up to 30 s."]
