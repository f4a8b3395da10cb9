"""The process that renders a Jinja template, seen from outside. See `jinja_process`."""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from tasks.chat import Message
from worker.checkpoints.chat.base import ChatError

_SCRIPT = Path(__file__).with_name("jinja_process.py")
#: How long a start and a conversation may take, in seconds. On a machine without load they take a tenth and a
#: thousandth of a second; the process itself limits the time of the processor.
START_S = 60.0
RENDER_S = 30.0
#: Longest answer that is read, in bytes.
_MAX_ANSWER_BYTES = 64 << 20


class TemplateProcess:
    """Renders conversations with one template. It can be used by several threads, which wait for each other.

    The process starts with the first conversation, and again after one that the template did not survive.
    """

    def __init__(self, source: str, variables: Mapping[str, Any]) -> None:
        self._source = source
        self._variables = dict(variables)
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        #: Ends the process, at the latest when this object or the interpreter goes.
        self._end: weakref.finalize[..., Any] | None = None

    def render(self, messages: Sequence[Message], now: float) -> str:
        """The text of a conversation. Raises ChatError."""
        listed = [{"role": message.role, "content": message.content} for message in messages]
        with self._lock:
            process = self._started()
            answer = self._exchange(process, {"messages": listed, "now": now}, RENDER_S)
        if "text" not in answer:
            raise _error(answer)
        return answer["text"]

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is not None and self._process.poll() is None:
            return self._process
        self._stop()
        # With -P, Python does not put the folder of the script, whose modules have common names, on the import path.
        process = subprocess.Popen(
            [sys.executable, "-P", str(_SCRIPT)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self._process = process
        self._end = weakref.finalize(self, _kill, process)
        answer = self._exchange(process, {"source": self._source, "variables": self._variables}, START_S)
        if "ready" not in answer:
            self._stop()
            raise _error(answer)
        return process

    def _exchange(self, process: subprocess.Popen[bytes], request: dict[str, Any], limit_s: float) -> dict[str, str]:
        """The answer to a request. Ends the process if there is none."""
        line = json.dumps(request, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n"
        assert process.stdin is not None
        try:
            process.stdin.write(line)
            process.stdin.flush()
            answer = _read_line(process, limit_s)
        except OSError:
            answer = b""
        if not answer.endswith(b"\n"):
            self._stop()
            return {"failed": "it takes too much time or memory"}
        decoded: dict[str, str] = json.loads(answer.decode("utf-8", "surrogatepass"))
        return decoded

    def _stop(self) -> None:
        if self._end is not None:
            self._end()
        self._process = self._end = None


def _read_line(process: subprocess.Popen[bytes], limit_s: float) -> bytes:
    """A line of the output. Incomplete if the process ends, the time is over, or the line is too long."""
    assert process.stdout is not None
    parts: list[bytes] = []
    length = 0
    until = time.monotonic() + limit_s
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while length <= _MAX_ANSWER_BYTES and selector.select(max(0.0, until - time.monotonic())):
            part = os.read(process.stdout.fileno(), 1 << 16)
            parts.append(part)
            length += len(part)
            if not part or part.endswith(b"\n"):
                break
    return b"".join(parts)


def _kill(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        assert pipe is not None
        # What is left to write is for a process that is gone.
        with suppress(OSError):
            pipe.close()


def _error(answer: Mapping[str, str]) -> ChatError:
    if "refused" in answer:
        return ChatError(f"The checkpoint's chat template refuses these messages: {answer['refused']}")
    return ChatError(f"The checkpoint's chat template failed: {answer.get('failed', 'it gave no text')}")
