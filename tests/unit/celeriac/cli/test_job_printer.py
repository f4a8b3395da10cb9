"""What `watch` prints while a job runs: a real process, with pipes and on a terminal."""

from __future__ import annotations

import json
import os
import pty
import select
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from tests.helpers.job_objects import JOB_ID, QUEUED, job_object
from tests.helpers.stream_bytes import PIECES, TEXT, done, event, queue, status, tokens
from tests.helpers.streaming_server import END, HEAD, Peer, chunk, streaming_server

COMMAND = [sys.executable, "-c", "from celeriac.cli import main; main()", "watch", JOB_ID, "--url"]
#: Longest wait for each expected event, in seconds.
DEADLINE_S = 60.0


def job(peer: Peer) -> None:
    body = json.dumps(job_object(QUEUED)).encode()
    head = (
        f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    peer.send(head.encode() + body)


class Steps:
    """Sends one part after another, each when the test has seen the part before."""

    def __init__(self, *parts: bytes) -> None:
        self._parts = parts
        self._seen = [threading.Event() for _ in parts]

    def __call__(self, peer: Peer) -> None:
        peer.send(HEAD)
        for part, seen in zip(self._parts, self._seen, strict=True):
            peer.send(chunk(part))
            assert seen.wait(DEADLINE_S)
        peer.send(END)

    def seen(self, part: int) -> None:
        self._seen[part].set()


def read_until(file: int, wanted: Callable[[bytes], bool]) -> bytes:
    """Read the output of a process until it is `wanted`. Fails if the output ends or takes too long."""
    text = b""
    end = time.monotonic() + DEADLINE_S
    while not wanted(text):
        ready, _, _ = select.select([file], [], [], max(0.0, end - time.monotonic()))
        assert ready, text
        more = os.read(file, 65536)
        assert more, text
        text += more
    return text


def test_text_is_printed_as_it_is_decoded(tmp_path: Path) -> None:
    steps = Steps(queue(0) + status(), tokens(0, 1), tokens(1, 3), tokens(3, 5) + done())
    with (
        streaming_server(job, steps) as server,
        (tmp_path / "stderr").open("wb") as stderr,
        subprocess.Popen([*COMMAND, server.url], stdout=subprocess.PIPE, stderr=stderr) as process,
    ):
        assert process.stdout is not None
        output = process.stdout.fileno()
        steps.seen(0)
        assert read_until(output, lambda text: len(text) >= 5) == b"1+1=5"
        steps.seen(1)
        assert read_until(output, lambda text: len(text) >= 3) == "€".encode()
        steps.seen(2)
        assert read_until(output, lambda text: len(text) >= 3) == b"9\n\n"
        steps.seen(3)
        assert process.wait(DEADLINE_S) == 0
    assert (tmp_path / "stderr").read_text().splitlines() == [
        f"{JOB_ID} queued, 3 ahead",
        f"{JOB_ID} queued, 0 ahead",
        f"{JOB_ID} running",
        f"{JOB_ID} succeeded",
    ]


def shown_on_a_terminal(written: bytes) -> list[str]:
    """The lines on a terminal after this output: a carriage return goes back to the first column."""
    lines = []
    for raw in written.decode().replace("\r\n", "\n").split("\n"):
        line = ""
        for part in raw.split("\r"):
            line = part + line[len(part) :]
        lines.append(line.rstrip())
    return lines


def test_on_a_terminal_the_queue_position_is_one_line_that_is_erased() -> None:
    queued = queue(12, eta_start_s=30.0) + queue(2, eta_start_s=4.0)
    attempt = event("attempt", {"attempt": 2, "resumed_from": 1}, "1-1")
    steps = Steps(queued, status() + tokens(0, 1), attempt + tokens(1, 5), done())
    terminal, end = pty.openpty()
    with (
        streaming_server(job, steps) as server,
        subprocess.Popen([*COMMAND, server.url], stdin=end, stdout=end, stderr=end) as process,
    ):
        os.close(end)
        written = read_until(terminal, lambda text: b"about 4 s" in text)
        assert shown_on_a_terminal(written) == [f"{JOB_ID} queued, 2 ahead, starts in about 4 s"]
        steps.seen(0)
        written += read_until(terminal, lambda text: b"=5" in text)
        assert shown_on_a_terminal(written) == [f"{JOB_ID} running", "1+1=5"]
        steps.seen(1)
        written += read_until(terminal, lambda text: PIECES[3].encode() in text)
        steps.seen(2)
        written += read_until(terminal, lambda text: b"succeeded\r\n" in text)
        steps.seen(3)
        assert process.wait(DEADLINE_S) == 0
    os.close(terminal)
    # A state in the middle of the text gets its own line. A pipe on stdout gets the text without a break.
    assert shown_on_a_terminal(written) == [
        f"{JOB_ID} running",
        "1+1=5",
        f"{JOB_ID} claimed again, resumed from token 1",
        *TEXT[1:].split("\n"),
        f"{JOB_ID} succeeded",
        "",
    ]
