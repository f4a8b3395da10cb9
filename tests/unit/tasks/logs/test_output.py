"""The queue between the threads that log and the one that writes."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator

import pytest

from tasks.logs.output import Output

#: Longest wait for what happens at once, in seconds.
DEADLINE_S = 30.0
#: More than any pipe holds.
MUCH = b"x" * 99 + b"\n"


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reader, writer = os.pipe()
    yield reader, writer
    for fd in (reader, writer):
        try:
            os.close(fd)
        except OSError:
            # The test has closed it.
            continue


def read_until(reader: int, end: bytes) -> bytes:
    received = bytearray()
    while not received.endswith(end):
        received += os.read(reader, 65_536)
    return bytes(received)


def test_lines_come_in_order(pipe: tuple[int, int]) -> None:
    output = Output()
    for index in range(1000):
        output.write(b"%d\n" % index, pipe[1])
    assert read_until(pipe[0], b"\n999\n").split() == [b"%d" % index for index in range(1000)]
    assert output.flush(DEADLINE_S)


def test_a_pipe_that_nobody_reads_blocks_no_caller_and_costs_bounded_memory(pipe: tuple[int, int]) -> None:
    output = Output(max_bytes=1_000_000)
    for _ in range(50_000):
        output.write(MUCH, pipe[1])
    assert not output.flush(0.01)
    output.write(b"end\n", pipe[1])
    received = read_until(pipe[0], b"end\n")
    lines = received.splitlines(keepends=True)
    counts = [int(line.split()[0]) for line in lines if b"were dropped" in line]
    # What was dropped is the oldest that waited, and is counted.
    assert counts
    assert sum(counts) + lines.count(MUCH) == 50_000
    assert b"were dropped" not in lines[-2]
    assert len(received) < 1_200_000
    assert output.flush(DEADLINE_S)


def test_a_reader_that_has_gone_is_no_error(pipe: tuple[int, int]) -> None:
    output = Output()
    os.close(pipe[0])
    output.write(b"lost\n", pipe[1])
    assert output.flush(DEADLINE_S)
    other_reader, other_writer = os.pipe()
    output.write(b"kept\n", other_writer)
    assert os.read(other_reader, 100) == b"kept\n"
    os.close(other_reader)
    os.close(other_writer)


def test_a_descriptor_that_does_not_block_gets_everything(pipe: tuple[int, int]) -> None:
    """Another process that shares the terminal or pipe may have set O_NONBLOCK."""
    os.set_blocking(pipe[1], False)
    output = Output()
    for _ in range(5000):
        output.write(MUCH, pipe[1])
    output.write(b"end\n", pipe[1])
    assert read_until(pipe[0], b"end\n").count(MUCH) == 5000


def test_many_threads_write_whole_lines(pipe: tuple[int, int]) -> None:
    output = Output()

    def write(name: int) -> None:
        for _ in range(200):
            output.write(b"%d" % name * 50 + b"\n", pipe[1])

    threads = [threading.Thread(target=write, args=(name,)) for name in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    output.write(b"end\n", pipe[1])
    lines = read_until(pipe[0], b"end\n").split()[:-1]
    assert len(lines) == 1600
    assert {bytes(line) for line in lines} == {b"%d" % name * 50 for name in range(8)}
