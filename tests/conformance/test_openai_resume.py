"""openai-python reads a response to its end although its worker and the API die, and the text is as if nothing died."""

from __future__ import annotations

import json
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bench.processes import stop_all
from tasks.chat import Message
from tasks.job import Status
from tasks.sampling_params import SamplingParams
from tests.conformance.client_environment import SCRIPTS, ClientEnvironment
from tests.faults.conftest import QUICK
from tests.helpers.chat_checkpoint import write_chat_checkpoint
from tests.integration.cluster import Cluster, Engine
from tests.integration.stack import Process, until
from worker.local import LocalModel

pytestmark = pytest.mark.slow

TOKENS, SEED = 200, 5
#: Tokens that the client has at least when something dies.
BEGUN = 8
#: How long the client may take for the rest, in seconds.
REST_S = 120.0


class Reader:
    """The script that reads the response. It starts at once."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        #: The lines that it has printed so far.
        self.lines: list[dict[str, Any]] = []
        self._errors = ""
        self._threads = [threading.Thread(target=target) for target in (self._read, self._read_errors)]
        for thread in self._threads:
            thread.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.lines.append(json.loads(line))

    def _read_errors(self) -> None:
        assert self._process.stderr is not None
        self._errors = self._process.stderr.read()

    @property
    def job_id(self) -> str | None:
        """The job of the response, when the client knows it."""
        return next((line["id"].replace("resp_", "job_") for line in self.lines if line.get("id")), None)

    def until_tokens(self, count: int) -> None:
        """Wait until the client has the text of this many tokens. Their events have the numbers from 5 on."""
        until(lambda: self.lines and self.lines[-1].get("number", 0) >= 4 + count, f"{count} tokens at the client")

    def until_broken(self) -> None:
        """Wait until the client's connection has broken."""
        until(lambda: any("broken" in line for line in self.lines), "a broken connection")

    def result(self) -> dict[str, Any]:
        """What the client has read, when it has read everything."""
        self._process.wait(REST_S)
        self.close()
        assert self._process.returncode == 0, self._errors
        return self.lines[-1]

    def close(self) -> None:
        """End the script if it still runs."""
        self._process.kill()
        for thread in self._threads:
            thread.join()
        # Closes the pipes, and waits for the process.
        with self._process:
            pass


@pytest.fixture
def cluster(redis_url: str, tmp_path: Path) -> Iterator[Cluster]:
    cluster = Cluster(redis_url, tmp_path, write_chat_checkpoint(tmp_path, context=512), **QUICK)
    yield cluster
    cluster.close()


@pytest.fixture
def api(cluster: Cluster) -> tuple[Process, str]:
    return cluster.stack.api()


@pytest.fixture
def begun(cluster: Cluster, api: tuple[Process, str], tmp_path: Path) -> Iterator[tuple[Reader, Process]]:
    """A client that has read the first tokens of a response, and the worker that decodes it, which is stopped."""
    worker = cluster.worker()
    engine = Engine(worker)
    stop_all([engine])
    clients = ClientEnvironment("clients", tmp_path, OPENAI_BASE_URL=f"{api[1]}/v1", OPENAI_API_KEY="none")
    given = {"chat": cluster.checkpoint.name, "tokens": TOKENS, "seed": SEED}
    reader = Reader(clients.start("python", str(SCRIPTS / "openai_resume.py"), json.dumps(given)))
    job_id = until(lambda: reader.job_id, "a response")
    cluster.decode_a_little([engine], [job_id], tokens=BEGUN)
    reader.until_tokens(BEGUN)
    yield reader, worker
    reader.close()


def assert_undisturbed(cluster: Cluster, reader: Reader, *, attempts: int) -> dict[str, Any]:
    """Assert that the client has the text of a model in this process, each part of it once. Returns what it read."""
    read = reader.result()
    model = LocalModel.load(str(cluster.checkpoint), cluster.checkpoint.parent, threads=1)
    sampling = SamplingParams(max_tokens=TOKENS, temperature=1.0, seed=SEED, ignore_eos=True)
    expected = model.generate(model.encode_messages([Message("user", "the sum")]), sampling, tools=True)
    assert read["text"] == read["output_text"] == expected.text
    assert read["status"] == "incomplete"
    assert read["numbers"] == sorted({*read["numbers"]})
    assert read["types"].count("response.created") == 1
    assert reader.job_id is not None
    job = cluster.job(reader.job_id)
    assert (job.status, job.attempt) == (Status.SUCCEEDED, attempts)
    return read


def test_the_worker_dies(cluster: Cluster, begun: tuple[Reader, Process]) -> None:
    """The connection stays, and the text goes on."""
    reader, worker = begun
    worker.kill()
    cluster.worker()
    assert assert_undisturbed(cluster, reader, attempts=2)["breaks"] == 0


def test_the_api_dies(cluster: Cluster, api: tuple[Process, str], begun: tuple[Reader, Process]) -> None:
    """The client goes on where it was, at a new process."""
    reader, worker = begun
    process, url = api
    process.kill()
    reader.until_broken()
    cluster.stack.api(port=int(url.rpartition(":")[2]))
    Engine(worker).resume()
    assert assert_undisturbed(cluster, reader, attempts=1)["breaks"] >= 1


def test_both_die(cluster: Cluster, api: tuple[Process, str], begun: tuple[Reader, Process]) -> None:
    reader, worker = begun
    process, url = api
    worker.kill()
    process.kill()
    reader.until_broken()
    cluster.worker(wait=False)
    cluster.stack.api(port=int(url.rpartition(":")[2]))
    assert assert_undisturbed(cluster, reader, attempts=2)["breaks"] >= 1
