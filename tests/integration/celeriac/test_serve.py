"""`celeriac serve` with real processes and a tiny checkpoint, and every way in which it ends."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import redis

from bench.processes import Engine, children
from celeriac import InferenceClient
from celeriac.launcher.redis_files import remember
from celeriac.launcher.redis_program import RedisProgram, find_program
from tasks.store import keys
from tests.helpers.requests import make_generation
from tests.helpers.same_text import assert_same_characters
from tests.integration.stack import CHECKPOINTS, ROOT, SHIPPED, START_S, Process, free_port, until

CHECKPOINT = Path(__file__).parents[2] / "fixtures" / "golden" / "E1b-seed" / "step_000102"
READY = "Celeriac is ready: http://127.0.0.1:{port} (docs at /docs)"


class Served:
    """Runs `celeriac serve` with a new data folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.processes: list[Process] = []

    def start(self, *options: str, checkpoint: Path | str = CHECKPOINT, **env: str) -> Process:
        command = [sys.executable, "-m", "celeriac", "serve"]
        if "--checkpoints" not in options:
            command += ["--checkpoint", str(checkpoint)]
        if "--port" not in options:
            command += ["--port", str(self.port)]
        process = Process(
            f"serve-{len(self.processes)}",
            [*command, "--data-dir", str(self.folder / "data"), *options],
            env={"CELERIAC_THREADS": "1", **env},
            log_dir=self.folder,
        )
        self.processes.append(process)
        return process

    def ready(self, *options: str, checkpoint: Path | str = CHECKPOINT, **env: str) -> Process:
        process = self.start(*options, checkpoint=checkpoint, **env)
        process.wait_for_line(READY.format(port=self.port), timeout_s=START_S)
        return process

    def family(self) -> set[int]:
        """The ids of all processes that have this test's data folder in their environment or command line."""
        mark = str(self.folder / "data").encode()
        found = set()
        for folder in Path("/proc").iterdir():
            if folder.name.isdigit() and int(folder.name) != os.getpid():
                try:
                    content = (folder / "environ").read_bytes() + (folder / "cmdline").read_bytes()
                except (FileNotFoundError, ProcessLookupError, PermissionError):
                    continue
                if mark in content:
                    found.add(int(folder.name))
        return found

    def workers(self) -> set[int]:
        """The ids of the `celeriac worker` processes among them."""
        return {pid for pid in self.family() if b"worker" in words(pid)}


def words(pid: int) -> list[bytes]:
    """The command line of a process; empty if it has exited."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except (FileNotFoundError, ProcessLookupError):
        return []


@pytest.fixture
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    # A short path, since the path of a socket is limited.
    folder = tmp_path_factory.mktemp("serve")
    served = Served(folder)
    yield served
    for process in served.processes:
        process.kill()
    until(lambda: not served.family(), "the end of all processes")


def test_one_command_serves_and_ctrl_c_stops_everything(served: Served) -> None:
    process = served.ready()
    with InferenceClient(served.url) as client:
        assert client.health() == {"status": "ok", "model_loaded": True, "checkpoint": "step_000102"}
        assert client.generate("12+", temperature=0.0, max_tokens=5)["prompt"] == "12+"
        job = client.submit("1+", max_tokens=5, ignore_eos=True)
        assert client.wait(job, timeout=60).tokens == 5
    assert httpx.get(f"{served.url}/docs").status_code == 200
    example = [sys.executable, str(ROOT / "examples" / "client_example.py"), served.url]
    shown = subprocess.run(example, capture_output=True, text=True, check=True).stdout
    assert "step_000102, step 102, validation loss 0.2627" in shown
    process.signal(signal.SIGINT)
    assert process.wait(30) == 0, process.output
    assert not served.family()
    assert "Traceback" not in process.output
    # The output is no terminal, so each line is one JSON object that names its process.
    events = [json.loads(line) for line in process.output.splitlines()]
    assert {event["process"] for event in events} == {"serve", "api", "worker"}
    (finished, *_) = [event for event in events if event["event"] == "job_finished"]
    assert (finished["process"], finished["tokens"]) == ("worker", 5)
    (ready,) = [event for event in events if event["event"] == READY.format(port=served.port)]
    assert ready["url"] == served.url
    assert any(event["event"] == "model_loaded" for event in events[: events.index(ready)])
    last = {key: events[-1].get(key) for key in ("event", "waiting", "started")}
    assert last == {"event": "No jobs wait.", "waiting": 0, "started": 0}


def test_a_data_folder_of_a_later_server_is_refused_and_stays_as_it_is(served: Served) -> None:
    """The record names a version that no machine has. `test_redis_files` has the other combinations."""
    data = served.folder / "data" / str(served.port)
    several = data / "appendonlydir"
    several.mkdir(parents=True)
    (several / "appendonly.aof.manifest").write_text("file appendonly.aof.1.incr.aof seq 1 type i\n")
    program = find_program()
    remember(data, RedisProgram(Path("/gone/redis-server"), program.name, (99, 0, 1)))
    process = served.start()
    assert process.wait(60) == 1
    [line] = [line for line in process.output.splitlines() if line.startswith("Error:")]
    assert f"was written by {program.name} 99.0.1 (/gone/redis-server)" in line
    assert str(program) in line
    assert "Traceback" not in process.output
    assert {path.name for path in data.iterdir()} == {"appendonlydir", "server.json", "lock"}


def test_a_redis_that_can_never_serve_the_queue_stops_the_start(served: Served, redis_url: str) -> None:
    process = served.start(CELERIAC_REDIS_URL=redis_url.replace("unix://", "unix://:secret@"))
    assert process.wait(60) == 1
    assert process.output.splitlines()[-1].startswith("Error: Redis at unix:///")
    assert "has no password, but CELERIAC_REDIS_URL has one" in process.output
    assert "secret" not in process.output
    assert "Traceback" not in process.output


def test_the_next_serve_has_ended_jobs_and_finishes_running_and_waiting_ones_after_ctrl_c(served: Served) -> None:
    # Tokens are written at once, so that the loop below sees them before the text ends.
    one_slot = {"CELERIAC_SLOTS": "1", "CELERIAC_FLUSH_INTERVAL_MS": "1"}
    process = served.ready(checkpoint=SHIPPED, **one_slot)
    [worker] = served.workers()
    [engine] = [Engine.of(pid) for pid in children(worker)]
    # If this process must wait for a processor, the engine must not get it meanwhile.
    os.setpriority(os.PRIO_PROCESS, engine.pid, 19)
    with InferenceClient(served.url) as client:
        ended = client.wait(client.submit("12+", max_tokens=5), timeout=60)
        # While the engine is stopped, the text cannot end, however fast the machine is.
        engine.stop()
        running = client.submit("123+", max_tokens=600, seed=7, ignore_eos=True)
        waiting = [client.submit(f"{seed}+", max_tokens=20, seed=seed, ignore_eos=True) for seed in range(3)]
        until(lambda: client.job(running.id).status == "running", "the start of the job")
        while client.job(running.id).tokens <= 50:
            engine.resume()
            time.sleep(0.001)
            engine.stop()
        process.signal(signal.SIGINT)
        assert process.wait(30) == 0, process.output
        last = json.loads(process.output.splitlines()[-1])
        assert last["event"] == "3 jobs wait, 1 goes on at the next start with the same command."
        served.ready(checkpoint=SHIPPED, **one_slot)
        assert client.job(ended.id).text == ended.text
        done = [client.wait(job, timeout=120) for job in (running, *waiting)]
    for job in done:
        generation = make_generation(
            prompt=job.prompt, max_tokens=job.max_tokens, temperature=0.8, seed=job.seed or 0, ignore_eos=True
        )
        assert (job.status, job.raw["usage"]["completion_tokens"]) == ("succeeded", job.max_tokens)
        assert_same_characters(CHECKPOINTS / SHIPPED, generation, job.text)
    resumed = done[0].raw
    assert (resumed["attempt"], resumed["losses"]) == (2, 0)
    assert resumed["resumed_tokens"] > 50


def test_a_killed_launcher_leaves_no_process_and_the_next_one_starts(served: Served) -> None:
    process = served.ready()
    assert len(served.family()) >= 5  # launcher, Redis, API, worker, engine
    os.kill(process.pid, signal.SIGKILL)
    until(lambda: not served.family(), "the end of all processes", timeout_s=15)
    served.ready()


def test_a_second_serve_needs_its_own_data_folder(served: Served) -> None:
    first = served.ready()
    second = served.start("--host", "127.0.0.2")
    assert second.wait(60) == 1
    assert f"process {first.pid}" in second.output
    assert "--data-dir" in second.output
    other = served.start("--port", str(free_port()))
    other.wait_for_line("Redis for further workers: ", timeout_s=START_S)


def test_a_worker_that_exits_is_restarted_until_it_has_exited_three_times(served: Served) -> None:
    process = served.ready()
    killed: set[int] = set()
    for _ in range(3):
        worker = until(lambda: served.workers() - killed, "a worker", timeout_s=START_S).pop()
        os.kill(worker, signal.SIGKILL)
        killed.add(worker)
    assert process.wait(60) == 1, process.output
    assert "worker exited (signal SIGKILL); restarting it in 0.5 s" in process.output
    assert "worker exited 3 times within 60 s" in process.output
    assert not served.family()


def test_two_workers_and_flower(served: Served) -> None:
    flower = free_port()
    process = served.ready("--workers", "2", "--flower", "--flower-port", str(flower))
    workers = until(
        lambda: len(data := httpx.get(f"{served.url}/v1/workers").json()["data"]) == 2 and data,
        "two workers",
        timeout_s=START_S,
    )
    assert len({worker["name"] for worker in workers}) == 2
    with InferenceClient(served.url) as client:
        job = client.wait(client.submit("12+", max_tokens=5), timeout=60)

    def shown() -> bool:
        try:
            return httpx.get(f"http://127.0.0.1:{flower}/task/{job.id}").status_code == 200
        except httpx.TransportError:
            return False

    until(shown, "the job in Flower", timeout_s=START_S)
    assert process.terminate(30) == 0


def test_the_options_and_the_redis_of_the_user_are_used(served: Served, redis_url: str) -> None:
    options = ("--root-path", "/llm", "--reload", "--host", "0.0.0.0")
    process = served.ready(*options, CELERIAC_REDIS_URL=redis_url)
    assert "Warning: everyone who can reach 0.0.0.0" in process.output
    # It also answers without the path, so the launcher knew when it was ready.
    assert httpx.get(f"{served.url}/llm/openapi.json").json()["servers"] == [{"url": "/llm"}]
    assert not (served.folder / "data").exists()
    assert "Redis for further workers" not in process.output
    with redis.Redis.from_url(redis_url) as client:
        assert client.exists(keys.CHECKPOINTS)
    assert process.terminate(30) == 0
    assert not served.family()


def test_a_damaged_checkpoint_stops_serve_with_the_reason(served: Served) -> None:
    copy = shutil.copytree(CHECKPOINT, served.folder / "step_000102")
    weights = copy / "model_000102.pt"
    weights.write_bytes(weights.read_bytes()[:1000])
    process = served.start(checkpoint=copy)
    assert process.wait(START_S) == 1
    last = json.loads(process.output.splitlines()[-1])["event"]
    assert last.startswith("Error: worker exited during startup (exit code 1). Its last line of output: ")
    assert "model_000102.pt" in last
    assert not served.family()


def test_a_redis_that_cannot_start_stops_serve_with_the_reason(served: Served) -> None:
    folder = served.folder / "data" / str(served.port)
    folder.mkdir(parents=True)
    (folder / "appendonly.aof").write_text("this is not an append-only file\n")
    (folder / "appendonlydir").write_text("")
    process = served.start()
    assert process.wait(START_S) == 1
    assert re.search(r"Error: redis exited during startup.*redis\.log", process.output)


def test_a_port_in_use_stops_serve_before_anything_starts(served: Served) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", served.port))
        taken.listen()
        process = served.start()
        assert process.wait(60) == 1
    assert process.output.startswith(f"Error: Port {served.port} on 127.0.0.1 is in use")
    assert not (served.folder / "data").exists()


def test_several_checkpoints_and_steps_are_served_at_once(served: Served) -> None:
    runs = {name: served.folder / name / "d4" for name in ("base_checkpoints", "chatsft_checkpoints")}
    for run, steps in zip(runs.values(), ((50,), (102,)), strict=True):
        run.mkdir(parents=True)
        for step in steps:
            shutil.copy(CHECKPOINT / "model_000102.pt", run / f"model_{step:06d}.pt")
            shutil.copy(CHECKPOINT / "meta_000102.json", run / f"meta_{step:06d}.json")
    base, sft = map(str, runs.values())
    served.ready(sft, checkpoint=f"{base}@50")
    with InferenceClient(served.url) as client:
        workers = httpx.get(f"{served.url}/v1/workers").json()["data"]
        assert {worker["model"] for worker in workers} == {"d4-50", "d4-sft"}
        for name, step in (("d4-50", 50), ("d4-sft", 102)):
            assert client.generate("12+", max_tokens=5, model=name)["model"] == name
            assert client.info(name)["step"] == step
        # The first argument is the default.
        assert client.generate("12+", max_tokens=5)["model"] == "d4-sft"


@pytest.mark.slow
def test_the_checkpoints_of_a_folder_are_served_without_naming_them(served: Served) -> None:
    models = served.folder / "models"
    shutil.copytree(CHECKPOINT, models / "run")
    shutil.copytree(CHECKPOINTS / SHIPPED, models / SHIPPED)
    process = served.ready("--checkpoints", str(models), "--memory-mb", "300")
    with InferenceClient(served.url) as client:
        for asked, model in (("run", "run-102"), (SHIPPED, SHIPPED), ("run-102", "run-102")):
            job = client.wait(client.submit("1+", max_tokens=5, ignore_eos=True, model=asked), timeout=START_S)
            assert (job.model, job.tokens) == (model, 5)
    listed = httpx.get(f"{served.url}/v1/models").json()["data"]
    assert {one["id"]: one["loaded"] for one in listed} == {"run-102": True, SHIPPED: False}
    # The whole family ends with the launcher, also if that is killed.
    process.signal(signal.SIGKILL)
    until(lambda: not served.family(), "the end of all processes")
    process = served.ready("--checkpoints", str(models))
    process.signal(signal.SIGINT)
    assert process.wait(20.0) == 0
    assert "No jobs wait." in process.output
    until(lambda: not served.family(), "the end of all processes")
