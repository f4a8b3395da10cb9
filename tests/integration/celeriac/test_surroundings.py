"""Only Celeriac's settings configure its processes: neither other variables nor files of the current folder do."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import pytest

from bench.processes import START_S, Process, children, free_port, until
from celeriac import InferenceClient
from tests.helpers.combinations import each_value_once
from tests.integration.cluster import TINY
from tests.integration.stack import ROOT

BIN = Path(sys.executable).parent
#: Each way to start the command line.
COMMANDS = {"script": [str(BIN / "celeriac")], "module": [sys.executable, "-m", "celeriac"]}
#: The same for `parametrize`. `make test` runs a module, for which Python itself searches the current folder first.
HOW = ["module", pytest.param("script", marks=pytest.mark.slow)]
#: A Redis that does not exist.
NOWHERE = "redis://127.0.0.1:1/9"
#: Variables of other programs. Each would change or end a process that obeys it.
FOREIGN = {
    **dict.fromkeys(("CELERY_BROKER_URL", "CELERY_BROKER_READ_URL", "CELERY_BROKER_WRITE_URL", "BROKER_URL"), NOWHERE),
    **dict.fromkeys(("CELERY_BROKER", "CELERY_RESULT_BACKEND", "RESULT_BACKEND", "CELERY_CACHE_BACKEND"), NOWHERE),
    **dict.fromkeys(("CELERY_CONFIG_MODULE", "CELERY_CONFIG", "CONFIG_MODULE"), "another_project.celeryconfig"),
    **dict.fromkeys(("CELERY_LOADER", "LOADER"), "another_project.loader:Loader"),
    **dict.fromkeys(("CELERY_APP", "APP"), "another_project.app"),
    "CELERY_CUSTOM_WORKER_POOL": "another_project.pool:Pool",
    "CELERY_WORKER_POOL": "solo",
    "CELERY_WORKER_QUEUES": "another-queue",
    "CELERY_WORKER_HOSTNAME": "another-worker",
    "CELERY_WORKER_CONCURRENCY": "1",
    "CELERY_RDBSIG": "1",
    "CELERY_TRACE_APP": "1",
    "DJANGO_SETTINGS_MODULE": "another_project.settings",
    "C_FORCE_ROOT": "1",
    "C_WNOCONF": "1",
    "KOMBU_LOG_DEBUG": "1",
    # Kubernetes sets this in a container beside a service that is called `flower`.
    "FLOWER_PORT": "tcp://10.0.0.7:5555",
    "FLOWER_ADDRESS": "10.0.0.7",
    "FLOWER_READ_ONLY": "false",
    "FLOWER_UNIX_SOCKET": "/nowhere/flower.sock",
    "FLOWER_CONF": "/nowhere/flowerconfig.py",
    "FLOWER_PERSISTENT": "true",
    "FLOWER_URL_PREFIX": "",
    "PROMETHEUS_MULTIPROC_DIR": "/nowhere",
    "WEB_CONCURRENCY": "three",
    "UVICORN_PORT": "1",
    "UVICORN_WORKERS": "3",
}
#: Further variables, which Celery reads while it is imported: `celeriac` removes them before.
READ_AT_IMPORT = {
    "C_STRICT_APP": "1",
    "AUTOSCALE_KEEPALIVE": "long",
    "PICKLE_PROTOCOL": "newest",
    "C_BENCH": "1",
    "C_BENCH_EVERY": "often",
}
#: Modules of the current folder. All are imported by a role, or by Python for a role.
MODULES = (
    *("api", "bench", "tasks", "worker", "celeryconfig", "flowerconfig", "another_project"),
    *("celery", "click", "fastapi", "flower", "httpx", "hiredis", "kombu", "numpy", "pydantic", "pydantic_settings"),
    *("redis", "rich", "starlette", "structlog", "tiktoken", "tokenizers", "torch", "tornado", "uvicorn", "vine"),
    *("argparse", "asyncio", "ctypes", "json", "logging", "multiprocessing", "secrets", "socket", "tempfile"),
)


class Roles:
    """Processes of all roles in one folder, with one environment."""

    def __init__(self, redis_url: str, folder: Path, env: dict[str, str]) -> None:
        self.folder = folder
        self.cwd = folder / "current"
        self.cwd.mkdir()
        self.processes: list[Process] = []
        self._env = {
            "CELERIAC_REDIS_URL": redis_url,
            "CELERIAC_CHECKPOINT": str(TINY),
            "CELERIAC_THREADS": "1",
            "CELERIAC_SLOTS": "4",
            "CELERIAC_LOG_FORMAT": "json",
            **env,
        }

    def run(self, name: str, *command: str, **env: str) -> Process:
        process = Process(name, command, env={**self._env, **env}, log_dir=self.folder, cwd=self.cwd)
        self.processes.append(process)
        return process

    def worker(self, *command: str, **env: str) -> Process:
        """Start a worker, and return when it takes jobs."""
        process = self.run("worker", *command, **env)
        process.wait_for_line(" ready.")
        return process

    def front_end(self, *command: str, path: str, **env: str) -> str:
        """Start an API process or Flower on a free port. Returns its URL when `path` answers."""
        port = free_port()
        process = self.run("front-end", *command, f"--port={port}", **env)
        url = f"http://127.0.0.1:{port}"
        until(lambda: answers(process, url + path), f"an answer of {url}{path}", timeout_s=START_S)
        return url

    def output(self) -> str:
        """The output of all processes."""
        return "\n".join(process.output for process in self.processes)


def answers(process: Process, url: str) -> bool:
    """Whether a URL has status 200. Raises AssertionError if the process has ended."""
    assert process.returncode is None, process.output
    with suppress(httpx.TransportError):
        return httpx.get(url).status_code == 200
    return False


def generate(url: str) -> str:
    """Generate a text with a job. Raises an error if the job does not succeed in time."""
    with InferenceClient(url, timeout=START_S) as client:
        return str(client.generate("12+3", temperature=0.0, max_tokens=5)["generated_text"])


@pytest.fixture
def make_roles(redis_url: str, tmp_path: Path) -> Iterator[Callable[[dict[str, str]], Roles]]:
    made: list[Roles] = []

    def make(env: dict[str, str]) -> Roles:
        made.append(Roles(redis_url, tmp_path, env))
        return made[-1]

    yield make
    for process in (process for roles in made for process in roles.processes):
        process.kill()


@pytest.fixture
def foreign(make_roles: Callable[[dict[str, str]], Roles]) -> Roles:
    """Roles with variables of other programs."""
    return make_roles(FOREIGN)


@pytest.fixture
def shadowed(make_roles: Callable[[dict[str, str]], Roles]) -> Roles:
    """Roles in a folder full of modules, each of which writes a file `imported` and fails."""
    roles = make_roles({})
    for name in MODULES:
        text = f"open({str(roles.folder / 'imported')!r}, 'a').write('{name} '); raise ImportError('foreign {name}')\n"
        if name in {"api", "tasks"}:
            (roles.cwd / name).mkdir()
            (roles.cwd / name / "__init__.py").write_text(text)
        else:
            (roles.cwd / f"{name}.py").write_text(text)
    return roles


def assert_nothing_was_imported(roles: Roles) -> None:
    """Assert that no module of the current folder was imported, also if a process survived that."""
    imported = roles.folder / "imported"
    assert not imported.exists(), imported.read_text()


def celery_worker() -> list[str]:
    """Celery's own command for a worker."""
    options = "-A worker.app worker --pool threads --without-gossip --without-mingle"
    return [sys.executable, "-m", "celery", *options.split()]


@pytest.mark.parametrize("own", [True, False], ids=["celeriac worker and api", "celery and uvicorn"])
def test_a_job_succeeds_whatever_variables_other_programs_set(foreign: Roles, own: bool) -> None:
    if own:
        worker = foreign.worker(*COMMANDS["script"], "worker", **READ_AT_IMPORT)
        url = foreign.front_end(*COMMANDS["script"], "api", path="/health/live", **READ_AT_IMPORT)
        # One process, and no supervisor of several.
        assert children(foreign.processes[-1].pid) == []
    else:
        worker = foreign.worker(*celery_worker())
        # uvicorn's own command obeys uvicorn's variables.
        command = [sys.executable, "-m", "uvicorn", "api.app:app"]
        url = foreign.front_end(*command, path="/health/live", WEB_CONCURRENCY="1", UVICORN_WORKERS="1")
    assert generate(url)
    named = httpx.get(f"{url}/v1/workers").json()["data"][0]
    assert named["name"].startswith(TINY.name)
    assert named["slots"] == 4
    # The worker has its default handlers of signals, and no debugger.
    assert worker.terminate() == 0
    assert "Traceback" not in foreign.output()


def test_flower_takes_the_values_of_celeriac_flower_and_keeps_a_login(foreign: Roles) -> None:
    login = ("user", "password")
    env = {"FLOWER_BASIC_AUTH": ":".join(login), **READ_AT_IMPORT}
    url = foreign.front_end(*COMMANDS["script"], "flower", path="/healthcheck", **env)
    assert httpx.get(f"{url}/workers").status_code == 401
    assert httpx.get(f"{url}/workers", auth=login).status_code == 200
    # It is read-only, and says so before it searches for the worker.
    assert httpx.post(f"{url}/api/worker/shutdown/one", auth=login).status_code == 403
    # Flower wrote no database.
    assert not list(foreign.cwd.iterdir())
    assert "Traceback" not in foreign.output()


def test_serve_works_whatever_variables_other_programs_set(foreign: Roles) -> None:
    assert_serves(foreign, COMMANDS["script"], **READ_AT_IMPORT)


@pytest.mark.parametrize("how", HOW)
def test_serve_imports_nothing_of_the_current_folder(shadowed: Roles, how: str) -> None:
    assert_serves(shadowed, COMMANDS[how])
    assert_nothing_was_imported(shadowed)


def assert_serves(roles: Roles, command: list[str], **env: str) -> None:
    """Run `celeriac serve` with Flower, generate a text, and stop it."""
    port, flower_port = free_port(), free_port()
    options = [f"--port={port}", "--flower", f"--flower-port={flower_port}"]
    serve = roles.run("serve", *command, "serve", *options, **env)
    serve.wait_for_line("Celeriac is ready")
    url = f"http://127.0.0.1:{port}"
    assert generate(url)
    until(lambda: answers(serve, f"http://127.0.0.1:{flower_port}/healthcheck"), "Flower", timeout_s=START_S)
    assert serve.terminate(60.0) == 0
    assert "Traceback" not in serve.output


@pytest.mark.parametrize(("how", "empty_entry"), each_value_once([*COMMANDS], [False, True]))
def test_worker_and_api_import_nothing_of_the_current_folder(shadowed: Roles, how: str, empty_entry: bool) -> None:
    """`empty_entry`: PYTHONPATH has an empty entry, which is the current folder."""
    env = {}
    if empty_entry:
        env["PYTHONPATH"] = f":{ROOT}"
        # Python itself imports modules of its standard library from such a folder.
        for name in set(MODULES) & sys.stdlib_module_names:
            (shadowed.cwd / f"{name}.py").unlink()
    worker = shadowed.worker(*COMMANDS[how], "worker", **env)
    url = shadowed.front_end(*COMMANDS[how], "api", path="/health/live", **env)
    assert generate(url)
    assert worker.terminate() == 0
    assert_nothing_was_imported(shadowed)


@pytest.mark.parametrize("how", HOW)
def test_flower_and_run_import_nothing_of_the_current_folder(shadowed: Roles, how: str) -> None:
    shadowed.front_end(*COMMANDS[how], "flower", path="/healthcheck")
    run = shadowed.run("run", *COMMANDS[how], "run", str(TINY), "--prompt", "12+3", "--max-tokens", "3")
    assert run.wait(START_S) == 0, run.output
    assert run.output.startswith("12+3")
    reloading = shadowed.front_end(*COMMANDS[how], "api", "--reload", path="/health/live")
    assert httpx.get(f"{reloading}/docs").status_code == 200
    assert_nothing_was_imported(shadowed)


def test_a_checkout_runs_its_own_modules_from_its_root(shadowed: Roles, tmp_path: Path) -> None:
    """`python -m celeriac` in a checkout is that checkout, also if another one is installed."""
    checkout = tmp_path / "checkout"
    shutil.copytree(ROOT / "celeriac", checkout / "celeriac")
    (checkout / "worker").mkdir()
    (checkout / "worker" / "__init__.py").write_text("raise ImportError('the module of this checkout')")
    shadowed.cwd = checkout
    run = shadowed.run("run", *COMMANDS["module"], "run", str(TINY), "--prompt", "1")
    assert run.wait(START_S) == 1
    assert "the module of this checkout" in run.output


#: Modules that Celery's and uvicorn's own commands import only through `worker.app` and `api.app`.
OWN_MODULES = (
    "tasks",
    "redis",
    "hiredis",
    "structlog",
    "pydantic_settings",
    "tiktoken",
    "tokenizers",
    "torch",
    "numpy",
)


def test_celery_and_uvicorn_search_the_current_folder_last_for_our_modules(shadowed: Roles) -> None:
    for file in shadowed.cwd.iterdir():
        if file.stem not in OWN_MODULES:
            shutil.rmtree(file) if file.is_dir() else file.unlink()
    for name in ("tiktoken", "tokenizers", "torch", "numpy"):
        assert (shadowed.cwd / f"{name}.py").exists()
    options = "-A worker.app worker --pool threads --without-gossip --without-mingle"
    worker = shadowed.worker(str(BIN / "celery"), *options.split())
    url = shadowed.front_end(str(BIN / "uvicorn"), "api.app:app", path="/health/live")
    assert generate(url)
    assert worker.terminate() == 0
    assert_nothing_was_imported(shadowed)


@pytest.mark.parametrize(
    "option",
    [
        "--broker",
        pytest.param("--result-backend", marks=pytest.mark.slow),
        pytest.param("--loader", marks=pytest.mark.slow),
        pytest.param("--config", marks=pytest.mark.slow),
    ],
)
def test_celery_cannot_be_given_another_redis_than_the_settings(
    make_roles: Callable[[dict[str, str]], Roles], option: str
) -> None:
    roles = make_roles({})
    worker = roles.run("worker", str(BIN / "celery"), option, NOWHERE, "-A", "worker.app", "worker")
    assert worker.wait(START_S) == 2, worker.output
    assert worker.output.startswith(f"Error: {option} cannot be used: ")
    assert worker.output.count("\n") == 1


@pytest.mark.parametrize("option", ["--queues", pytest.param("--exclude-queues", marks=pytest.mark.slow)])
def test_celery_cannot_be_given_other_queues_than_that_of_the_checkpoint(
    make_roles: Callable[[dict[str, str]], Roles], option: str
) -> None:
    roles = make_roles({})
    worker = roles.run("worker", *celery_worker(), option, "another")
    assert worker.wait(START_S) == 2, worker.output
    assert worker.output.splitlines()[-1].startswith(f"Error: {option} cannot be used: ")


@pytest.mark.parametrize("package", ["celeriac", "api", "tasks", "worker"])
def test_a_folder_that_is_called_like_a_package_does_not_hide_it(tmp_path: Path, package: str) -> None:
    """A clone is such a folder: it is called `celeriac` and has no `__init__.py`."""
    (tmp_path / package / "docs").mkdir(parents=True)
    code = f"import {package}; print({package}.__file__)"
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=START_S
    )
    assert found.stdout == f"{ROOT / package / '__init__.py'}\n", found.stderr
