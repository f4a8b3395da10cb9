"""`celeriac` as a process of its own: signals, outputs that fail, input that is not text, variables of other programs.

The server is a real one that holds a job until the test releases it.
"""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import termios
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import IO, Any

import pytest

from tests.helpers.job_objects import JOB_ID, QUEUED, RUNNING, job_object
from tests.helpers.json_handler import JsonHandler
from tests.helpers.stream_bytes import TEXT, done, tokens
from tests.helpers.streaming_server import END, HEAD, chunk

#: Longest wait for a process or an event, in seconds.
DEADLINE_S = 60.0
CANCEL = ("POST", f"/v1/jobs/{JOB_ID}/cancel")


@dataclass
class Server:
    """A server of one job. Its stream stops after two tokens until `release` is set."""

    url: str = ""
    #: Whether the first submission gets no response.
    holds_submission: bool = False
    #: Whether a cancel gets no response.
    holds_cancel: bool = False
    cancel_held: threading.Event = field(default_factory=threading.Event)
    #: Set when a request is held: the first submission, or the stream.
    held: threading.Event = field(default_factory=threading.Event)
    release: threading.Event = field(default_factory=threading.Event)
    #: Method and path of each request.
    requests: list[tuple[str, str]] = field(default_factory=list)
    #: The Idempotency-Key of each submission.
    keys: list[str] = field(default_factory=list)

    def hold(self) -> None:
        """Report that a request is held, and hold it."""
        self.held.set()
        self.release.wait(DEADLINE_S)


@pytest.fixture
def server() -> Iterator[Server]:
    state = Server()

    class Handler(JsonHandler, BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            state.requests.append(("GET", self.path))
            if not self.path.endswith("/stream"):
                self.reply(job_object(RUNNING))
                return
            self.wfile.write(HEAD + chunk(tokens(0, 2)))
            state.hold()
            self.wfile.write(chunk(tokens(2, 5)) + chunk(done()) + END)

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            state.requests.append(("POST", self.path))
            if self.path == "/v1/jobs":
                state.keys.append(self.headers["Idempotency-Key"])
                if state.holds_submission and len(state.keys) == 1:
                    state.hold()
            elif state.holds_cancel:
                state.cancel_held.set()
                state.release.wait(DEADLINE_S)
            self.reply(job_object(QUEUED))

    class Quiet(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: Any) -> None:
            """A client that is interrupted breaks its connections."""

    with Quiet(("127.0.0.1", 0), Handler) as http:
        state.url = f"http://127.0.0.1:{http.server_port}"
        thread = threading.Thread(target=http.serve_forever)
        thread.start()
        yield state
        state.release.set()
        http.shutdown()
        thread.join()


def environment(**changes: str) -> dict[str, str]:
    """The environment of the test without its proxies, and with changes."""
    return {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")} | changes


def started(
    server: Server,
    *args: str | bytes,
    prepare: Callable[[], None] | None = None,
    stdin: int | IO[Any] | None = subprocess.DEVNULL,
    stdout: int | IO[Any] | None = subprocess.PIPE,
    stderr: int | IO[Any] | None = subprocess.PIPE,
    **variables: str,
) -> subprocess.Popen[bytes]:
    """Start a command. `prepare` runs in the child, before the command."""
    return subprocess.Popen(
        [sys.executable, "-m", "celeriac", *args],
        env=environment(CELERIAC_URL=server.url, **variables),
        stdin=stdin,
        stdout=stdout,
        stderr=stderr,
        start_new_session=True,
        preexec_fn=prepare,
    )


def ended(process: subprocess.Popen[bytes]) -> tuple[int, str, str]:
    """Wait for the end of a command. Returns its exit code, stdout and stderr."""
    try:
        out, err = process.communicate(timeout=DEADLINE_S)
    finally:
        process.kill()
    return process.returncode, (out or b"").decode(), (err or b"").decode()


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGINT, 1)], ids=lambda value: f"{value}"
)
@pytest.mark.parametrize("options", [(), ("--json",)], ids=["text", "json"])
def test_a_signal_on_generate_cancels_the_job(
    server: Server, number: signal.Signals, code: int, options: tuple[str, ...]
) -> None:
    process = started(server, "generate", "1+1=", *options)
    assert server.held.wait(DEADLINE_S)
    process.send_signal(number)
    found, _, err = ended(process)
    assert found == code, err
    assert "Traceback" not in err
    assert server.requests[-1] == CANCEL


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_during_the_submission_cancels_the_job_that_the_server_may_have(
    server: Server, number: signal.Signals
) -> None:
    server.holds_submission = True
    process = started(server, "generate", "1+1=")
    assert server.held.wait(DEADLINE_S)
    process.send_signal(number)
    _, _, err = ended(process)
    assert "Traceback" not in err
    assert server.requests == [("POST", "/v1/jobs"), ("POST", "/v1/jobs"), CANCEL]
    assert len(set(server.keys)) == 1


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGINT, 1)])
def test_a_second_signal_ends_generate_without_a_response_to_the_cancel(
    server: Server, number: signal.Signals, code: int
) -> None:
    server.holds_cancel = True
    process = started(server, "generate", "1+1=")
    assert server.held.wait(DEADLINE_S)
    process.send_signal(number)
    assert server.cancel_held.wait(DEADLINE_S)
    process.send_signal(number)
    found, _, err = ended(process)
    assert (found, "Traceback" in err) == (code, False)


def test_a_closed_terminal_on_generate_cancels_the_job(server: Server) -> None:
    master, terminal = os.openpty()
    take = partial(fcntl.ioctl, terminal, termios.TIOCSCTTY, 0)
    process = started(server, "generate", "1+1=", prepare=take, stdin=terminal, stdout=terminal, stderr=terminal)
    os.close(terminal)
    assert server.held.wait(DEADLINE_S)
    os.close(master)
    assert ended(process)[0] == 129
    assert server.requests[-1] == CANCEL


def test_generate_under_nohup_outlives_its_terminal(server: Server) -> None:
    process = started(server, "generate", "1+1=", prepare=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
    assert server.held.wait(DEADLINE_S)
    process.send_signal(signal.SIGHUP)
    server.release.set()
    assert ended(process)[:2] == (0, f"1+1={TEXT}\n")
    assert CANCEL not in server.requests


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_on_watch_leaves_the_job_alone(server: Server, number: signal.Signals) -> None:
    process = started(server, "watch", JOB_ID)
    assert server.held.wait(DEADLINE_S)
    process.send_signal(number)
    code, _, err = ended(process)
    # A shell reports the end by a signal as 128 + number.
    assert code == (1 if number == signal.SIGINT else -number)
    assert "Traceback" not in err
    assert [method for method, _ in server.requests] == ["GET", "GET"]


def test_a_full_output_on_generate_cancels_the_job(server: Server) -> None:
    with open("/dev/full", "wb") as full:
        code, _, err = ended(started(server, "generate", "1+1=", stdout=full))
    assert code == 1
    assert err.endswith("Error: No space left on device\n")
    assert server.requests[-1] == CANCEL


def test_an_output_that_cannot_hold_the_text_is_an_error_and_cancels_the_job(server: Server) -> None:
    server.release.set()
    code, _, err = ended(started(server, "generate", "1+1=", PYTHONIOENCODING="latin-1"))
    assert code == 1
    assert err.endswith("Error: The output is not text in the encoding latin-1. Set PYTHONIOENCODING=utf-8.\n")
    assert server.requests[-1] == CANCEL


@pytest.mark.parametrize("descriptor", [1, 2])
@pytest.mark.parametrize("command", [("generate", "1+1="), ("watch", JOB_ID)], ids=["generate", "watch"])
def test_a_closed_output_is_not_an_error(server: Server, command: tuple[str, ...], descriptor: int) -> None:
    server.release.set()
    code, out, err = ended(started(server, *command, prepare=lambda: os.close(descriptor)))
    assert (code, "Traceback" in err) == (0, False)
    assert (out, err)[descriptor - 1] == ""


@pytest.mark.parametrize("command", ["generate", "submit"])
def test_a_prompt_that_is_not_text_is_one_line(server: Server, command: str, tmp_path: Path) -> None:
    code, _, err = ended(started(server, command, b"\xff", PYTHONUTF8="1"))
    assert (code, err) == (1, "Error: The prompt is not text in the encoding utf-8.\n")
    file = tmp_path / "prompt"
    file.write_bytes(b"\xff")
    with file.open("rb") as stdin:
        code, _, err = ended(started(server, command, "-", stdin=stdin, PYTHONIOENCODING="utf-8:strict"))
    assert (code, err) == (1, "Error: Standard input is not text in the encoding utf-8.\n")
    with file.open("rb") as stdin:
        code, _, err = ended(started(server, command, "-", stdin=stdin, PYTHONUTF8="1"))
    assert (code, err) == (1, "Error: Standard input is not text in the encoding utf-8.\n")
    assert server.requests == []


def test_standard_input_that_cannot_be_read_is_one_line(server: Server, tmp_path: Path) -> None:
    code, _, err = ended(started(server, "generate", "-", prepare=lambda: os.close(0)))
    assert (code, err) == (1, "Error: Standard input is closed.\n")
    with (tmp_path / "file").open("wb") as not_readable:
        code, _, err = ended(started(server, "generate", "-", stdin=not_readable))
    assert (code, err) == (1, "Error: Standard input cannot be read: Bad file descriptor.\n")
    assert server.requests == []


@pytest.mark.parametrize("command", ["watch", "cancel", "retry", "delete"])
def test_a_job_id_that_is_not_text_reaches_the_server(server: Server, command: str) -> None:
    server.release.set()
    _, _, err = ended(started(server, command, b"job\xff", PYTHONUTF8="1"))
    assert "Traceback" not in err
    assert server.requests == [] or "job%ED%B3%BF" in server.requests[0][1]


@pytest.mark.parametrize(
    "variables",
    [
        {"ALL_PROXY": "socks://127.0.0.1:7897"},
        {"NO_PROXY": "localhost,fd00::/8"},
        {"SSL_CERT_FILE": "/nonexistent.pem"},
        {"HTTP_PROXY": "host:not:a:port", "HTTPS_PROXY": "http://[::1"},
        {"http_proxy": "http://127.0.0.1:9"},
    ],
    ids=lambda variables: "-".join(variables),
)
def test_a_server_on_this_machine_is_reached_despite_variables_of_other_programs(
    server: Server, variables: dict[str, str]
) -> None:
    server.release.set()
    assert ended(started(server, "generate", "1+1=", **variables))[:2] == (0, f"1+1={TEXT}\n")


def test_another_server_is_reached_through_the_proxy(server: Server) -> None:
    process = started(server, "cancel", JOB_ID, "--url", "http://inference.example", HTTP_PROXY=server.url, NO_PROXY="")
    assert ended(process)[0] == 0
    assert server.requests == [("POST", f"http://inference.example/v1/jobs/{JOB_ID}/cancel")]


def test_a_proxy_that_cannot_be_used_is_one_line_with_its_variable(server: Server) -> None:
    process = started(server, "jobs", "--url", "http://inference.example", ALL_PROXY="socks://127.0.0.1:7897")
    code, _, err = ended(process)
    assert code == 1
    assert err.startswith("Error: ALL_PROXY is not a proxy that can be used for http://inference.example. ")
    assert err.count("\n") == 1


def test_a_server_without_tls_at_an_https_url_is_one_line_that_names_tls(server: Server) -> None:
    url = server.url.replace("http:", "https:")
    code, _, err = ended(started(server, "jobs", "--url", url))
    assert code == 1
    assert err.startswith(f"Error: {url}: the TLS connection failed ([SSL: ")
    assert err.count("\n") == 1


def test_ctrl_c_while_modules_are_imported_is_one_line(server: Server, tmp_path: Path) -> None:
    (tmp_path / "click.py").write_text("raise KeyboardInterrupt")
    code, _, err = ended(started(server, "jobs", PYTHONPATH=str(tmp_path)))
    assert (code, err) == (1, "\nAborted!\n")


def test_an_ended_job_needs_no_cancel(server: Server) -> None:
    server.release.set()
    process = started(server, "generate", "1+1=")
    assert ended(process)[:2] == (0, f"1+1={TEXT}\n")
    assert CANCEL not in server.requests
