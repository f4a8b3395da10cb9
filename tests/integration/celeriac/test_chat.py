"""`celeriac chat` against a real server with a chat checkpoint: a person on a terminal, and lines from a pipe."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from celeriac import InferenceClient, InvalidRequestError, JobFailedError
from tasks.job import Status
from tests.conftest import running_redis
from tests.helpers.chat_checkpoint import write_chat_checkpoint
from tests.integration.celeriac.test_terminal import Terminal, terminal
from tests.integration.cluster import DEADLINE_S, Cluster, Engine, creep, stopped
from tests.integration.stack import START_S, until

CONTEXT = 512
GREEDY = ("--temperature", "0", "--ignore-eos")


@dataclass(frozen=True)
class Served:
    """A chat checkpoint with one worker and one API process."""

    cluster: Cluster
    engine: Engine
    url: str


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    folder = Path(tempfile.mkdtemp(prefix="cel-"))
    with running_redis(folder) as redis_url:
        cluster = Cluster(f"{redis_url}?db=0", folder, write_chat_checkpoint(folder, context=CONTEXT), slots="2")
        try:
            worker = cluster.worker()
            _, url = cluster.stack.api()
            yield Served(cluster, Engine(worker), url)
        finally:
            cluster.close()
    shutil.rmtree(folder)


def type_line(shown: Terminal, line: str) -> None:
    os.write(shown.master, f"{line}\n".encode())


def until_count(shown: Terminal, text: str, count: int) -> None:
    """Read what the terminal gets until it has shown `text` this many times."""

    def there() -> bool:
        shown.read_available()
        return shown.raw.count(text) >= count

    until(there, f"{text!r}, {count} times", timeout_s=START_S)


def test_a_person_stops_an_answer_and_goes_on(served: Served) -> None:
    cluster, engine, url = served.cluster, served.engine, served.url
    options = ("--url", url, "--max-tokens", "200", *GREEDY)
    with InferenceClient(url) as client, terminal("chat", *options) as shown:
        shown.read_until("> ")
        with stopped([engine]):
            type_line(shown, "hi")
            job = until(lambda: next(iter(client.jobs(limit=1)), None), "the job", timeout_s=DEADLINE_S)
            cluster.when(job.id, Status.RUNNING)
            before = len(shown.raw)

            def has_shown_text() -> bool:
                shown.read_available()
                return len(shown.raw) > before + len("hi\r\n") + 3

            creep([engine], has_shown_text)
            shown.process.send_signal(signal.SIGINT)
            until_count(shown, "(stopped)", 1)
        stopped_job = cluster.finished(job.id)
        assert (stopped_job.status, 0 < stopped_job.tokens < 200) == (Status.CANCELLED, True)

        type_line(shown, "go on")
        until_count(shown, "(cut: ", 1)
        second = client.jobs(limit=1)[0]
        assert second.messages is not None
        first_question, kept, question = second.messages
        assert (first_question["content"], question) == ("hi", {"role": "user", "content": "go on"})
        # What was printed is the beginning of what the job had when it ended.
        assert kept["role"] == "assistant"
        assert stopped_job.completion is not None
        assert kept["content"]
        assert stopped_job.completion.startswith(kept["content"])

        # At the prompt Ctrl-C leaves.
        shown.process.send_signal(signal.SIGINT)
        shown.read_rest()
        assert (shown.process.returncode, "Traceback" in shown.raw) == (0, False)


def test_lines_of_a_pipe_and_the_python_client_get_the_same_answers(served: Served) -> None:
    url = served.url
    too_long = "x y " * CONTEXT
    command = [sys.executable, "-m", "celeriac", "chat", "--url", url, "--max-tokens", "8", "--system", "S", *GREEDY]
    done = subprocess.run(
        command, input=f"hi\n{too_long}\nagain\n".encode(), capture_output=True, timeout=START_S, check=False
    )
    with InferenceClient(url) as client:
        messages = [{"role": "system", "content": "S"}]
        answers = []
        for text in ("hi", "again"):
            messages.append({"role": "user", "content": text})
            result = client.generate(messages=messages, max_tokens=8, temperature=0.0, ignore_eos=True)
            answers.append(result["generated_text"])
            messages.append({"role": "assistant", "content": answers[-1]})
        assert done.stdout.decode() == "".join(f"{answer.removesuffix(chr(10))}\n" for answer in answers)
        error, *_ = [line for line in done.stderr.decode().splitlines() if line.startswith("Error: ")]
        assert error.startswith("Error: The conversation is too long. The prompt has ")
        assert (str(CONTEXT) in error, error.endswith("/clear begins a new one.")) == (True, True)
        assert done.returncode == 1

        with pytest.raises((InvalidRequestError, JobFailedError), match=str(CONTEXT)):
            client.generate(messages=[{"role": "user", "content": too_long}])
        with pytest.raises((InvalidRequestError, JobFailedError), match="alternate"):
            client.generate(messages=messages[:2] + messages[1:2])
        job = client.wait(client.submit(prompt_token_ids=[5, 6], max_tokens=3, logprobs=2, ignore_eos=True))
        assert (job.status, job.prompt, job.prompt_token_ids) == ("succeeded", "", (5, 6))
        assert job.logprobs is not None
        assert [len(one.top) for one in job.logprobs] == [2] * 3
