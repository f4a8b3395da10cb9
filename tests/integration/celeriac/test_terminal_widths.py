"""The command line in real terminals of several widths."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tests.helpers.job_objects import JOB_ID, QUEUED, SUCCEEDED, job_object
from tests.helpers.json_handler import JsonHandler
from tests.helpers.stream_bytes import TEXT, done, queue, tokens
from tests.helpers.streaming_server import END, HEAD, chunk
from tests.integration.cluster import TINY
from tests.integration.stack import START_S

#: Widths of terminals, in columns.
WIDTHS = (40, pytest.param(60, marks=pytest.mark.slow), 80, pytest.param(100, marks=pytest.mark.slow), 200)
#: Escape sequences of a terminal.
_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Terminal:
    """A command in a terminal of its own."""

    def __init__(self, *args: str, width: int, **variables: str) -> None:
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, width, 0, 0))
        env = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "celeriac", *args],
            env={**env, "TERM": "xterm", **variables},
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            # Ctrl-C reaches the process through its terminal.
            preexec_fn=lambda: fcntl.ioctl(slave, termios.TIOCSCTTY, 0),
        )
        os.close(slave)
        self.output = ""

    def type(self, text: str) -> None:
        """Type a text."""
        os.write(self._master, text.encode())

    def wait_for(self, text: str, *, count: int = 1) -> None:
        """Read the output until it contains `text` `count` times, without escape sequences."""
        deadline = time.monotonic() + START_S
        while self.plain.count(text) < count:
            assert time.monotonic() < deadline, self.output
            assert self._read(1.0), self.output

    def end(self) -> str:
        """Read the output until the command ends. Returns it without escape sequences."""
        deadline = time.monotonic() + START_S
        while self._read(1.0):
            assert time.monotonic() < deadline, self.output
        self.process.wait(START_S)
        return self.plain

    @property
    def plain(self) -> str:
        """The output without escape sequences."""
        return _ESCAPES.sub("", self.output).replace("\r\n", "\n")

    def close(self) -> None:
        """End the command and the terminal."""
        self.process.kill()
        self.process.wait()
        os.close(self._master)

    def _read(self, timeout_s: float) -> bool:
        """Read what is there. False after the end of the output."""
        if not select.select([self._master], [], [], timeout_s)[0]:
            return True
        try:
            data = os.read(self._master, 65536)
        except OSError:
            # Linux reports the end of a terminal as an error.
            return False
        self.output += data.decode()
        return bool(data)


@pytest.fixture
def terminals() -> Iterator[list[Terminal]]:
    opened: list[Terminal] = []
    yield opened
    for terminal in opened:
        terminal.close()


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """A server with two jobs. The stream of one reports ever new positions in the queue."""

    class Handler(JsonHandler, BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            if self.path.endswith("/stream"):
                positions = (queue(n, eta_start_s=100.0 * n) for n in range(40, 0, -1))
                self.wfile.write(HEAD + b"".join(map(chunk, (*positions, tokens(0, 5), done()))) + END)
            else:
                long = job_object(SUCCEEDED, id="job_01M8EEPHMJY6HAQM9M986NQS6F")
                long["input"]["prompt"] = "123+456=" * 20
                self.reply({"data": [job_object(QUEUED), long], "next_cursor": None})

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.reply(job_object(QUEUED))

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        http.daemon_threads = True
        thread = threading.Thread(target=http.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{http.server_port}"
        http.shutdown()
        thread.join()


@pytest.mark.parametrize("width", WIDTHS)
def test_jobs_breaks_no_id_and_no_word(terminals: list[Terminal], url: str, width: int) -> None:
    terminals.append(Terminal("jobs", "--url", url, width=width))
    lines = terminals[0].end().splitlines()
    assert lines[0].split()[:2] == ["ID", "STATUS"]
    assert "job_01M8EEPHMJY6HAQM9M986NQS6F  succeeded, newline" in lines[2]
    assert re.match(rf"{JOB_ID}\s+queued, 3 ahead", lines[1])
    assert all(len(line) <= max(width, 50) for line in lines[:3])
    assert ("too narrow for CREATED" in terminals[0].plain) == (width < 120)


@pytest.mark.parametrize("width", WIDTHS)
def test_the_position_in_the_queue_is_one_line(terminals: list[Terminal], url: str, width: int) -> None:
    terminals.append(Terminal("generate", "1+1=", "--url", url, width=width))
    output = terminals[0].end()
    before, _, after = output.partition("\r" + " " * 10)
    written = [part for part in before.split("\r") if part]
    assert len(written) > 10
    # A terminal begins a new line after its last column, and a carriage return does not lead back from there.
    assert all(len(part) < width and "\n" not in part for part in written)
    assert all("queued" in part for part in written)
    assert f"1+1={TEXT}" in after


def test_interactive_lines_can_be_edited_and_come_back(terminals: list[Terminal]) -> None:
    command = ["run", str(TINY), "--interactive", "--max-tokens", "3", "--temperature", "0"]
    terminal = Terminal(*command, width=80, CELERIAC_THREADS="1")
    terminals.append(terminal)
    terminal.wait_for("> ")
    # Backspace and the left arrow edit the line: it becomes 12+.
    terminal.type("1x\x7f+\x1b[D2\n")
    terminal.wait_for("> ", count=2)
    first = terminal.plain.splitlines()[-2]
    assert first.startswith("12+")
    # The up arrow brings it back.
    terminal.type("\x1b[A\n")
    terminal.wait_for("> ", count=3)
    assert terminal.plain.splitlines()[-2] == first
    terminal.type("\x04")
    terminal.end()
    assert terminal.process.returncode == 0
    assert "Traceback" not in terminal.plain


def test_ctrl_c_at_the_prompt_of_a_conversation_ends_it(terminals: list[Terminal]) -> None:
    terminal = Terminal("run", str(TINY), "--interactive", width=80, CELERIAC_THREADS="1")
    terminals.append(terminal)
    terminal.wait_for("> ")
    terminal.type("12")
    terminal.wait_for("> 12")
    while terminal.process.poll() is None:
        # Python's readline notices a signal only while it waits for a key, so the first one may come too early.
        terminal.process.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            # A second signal while Python exits would end it in another way.
            terminal.process.wait(20.0)
    assert "Traceback" not in terminal.end()
    assert terminal.process.returncode == 0
