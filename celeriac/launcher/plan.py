"""Turns the options of `celeriac serve` into the roles to run. Checks everything before a process is started."""

from __future__ import annotations

import os
import secrets
import shlex
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import zip_longest
from pathlib import Path

from celeriac.errors import CeleriacError
from celeriac.launcher import ports
from celeriac.launcher.console import Console
from celeriac.launcher.kept_jobs import kept_jobs
from celeriac.launcher.launcher import Launcher
from celeriac.launcher.placement import has_gpus, placement
from celeriac.launcher.redis_server import DataFolder
from tasks.machine_memory import BUDGET_SHARE, memory_bytes
from tasks.processes.child import Role
from tasks.settings import Settings
from worker.checkpoints.folder import CheckpointFolder, find
from worker.checkpoints.tokenizers import check_tokenizer

#: The file that runs the command line.
COMMAND_LINE = Path(__file__).parents[1] / "__main__.py"

#: What the names of workers begin with that have no checkpoint of their own.
SWITCHING = "switching"

#: Flower shows all jobs without a login, so it listens on this machine only.
FLOWER_HOST = "127.0.0.1"

#: How long each role may take to exit, in seconds. The API finishes running requests, a worker releases its jobs, and
#: Redis writes its file.
API_STOP_S = 10.0
FLOWER_STOP_S = 5.0
WORKER_STOP_S = 10.0
REDIS_STOP_S = 30.0


class PlanError(CeleriacError):
    """The options contradict one another."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The options of `celeriac serve`."""

    #: Names or paths, and the names for clients, one for each; no names: the default ones.
    checkpoints: tuple[str, ...]
    names: tuple[str, ...] = ()
    #: A folder whose checkpoints are loaded when jobs wait for them, instead of `checkpoints`.
    folder: Path | None = None
    host: str
    port: int
    device: str
    weights: str
    compute: str = "exact"
    reload: bool
    #: Workers for each checkpoint, or for the folder.
    workers: int
    flower: bool
    flower_port: int
    data_dir: Path


def serve(options: Options, settings: Settings) -> int:
    """Run all roles until a signal. Returns the exit code. Raises CeleriacError or CheckpointError before the start."""
    served = {} if options.folder is not None else _checkpoints(options, settings)
    ports.check_port(options.host, options.port)
    if options.flower:
        ports.check_port(FLOWER_HOST, options.flower_port, option="--flower-port")
    if "redis_url" in settings.model_fields_set:
        return _launch(options, settings, served, None)
    data = DataFolder.acquire(options.data_dir / str(options.port))
    try:
        redis = Role(
            name="redis",
            command=data.command(
                appendfsync=settings.redis_appendfsync,
                maxmemory_mb=settings.redis_maxmemory_mb,
            ),
            stop_s=REDIS_STOP_S,
            # The server holds the lock of its data folder until it exits.
            pass_fds=(data.lock,),
        )
        return _launch(options, settings, served, (data, redis))
    finally:
        data.release()


def _checkpoints(options: Options, settings: Settings) -> dict[str, str]:
    """The checkpoints as the operator gave them, by their names for clients. Raises CheckpointError or PlanError."""
    served: dict[str, str] = {}
    folders: dict[str, CheckpointFolder] = {}
    for given, name in zip_longest(options.checkpoints, options.names):
        folder = find(given, settings.checkpoint_dir, name=name)
        other = folders.get(folder.name)
        if other == folder:
            raise PlanError(f"{given} is given twice. Use --workers to start several workers for each checkpoint.")
        if other is not None:
            raise PlanError(
                f"{served[folder.name]} and {given} would both be called {folder.name}. Give each checkpoint a name, "
                f"in the same order: --name {folder.name}-1 --name {folder.name}-2"
            )
        folders[folder.name] = folder
        served[folder.name] = given
    for folder in folders.values():
        check_tokenizer(folder)
    return served


def _launch(options: Options, settings: Settings, served: dict[str, str], redis: tuple[DataFolder, Role] | None) -> int:
    redis_url = settings.redis_url if redis is None else redis[0].url
    env = _environment(options, settings, next(iter(served), ""), redis_url)
    # With -P, Python does not put the current folder, which may contain modules of another project, on the import path.
    run = [sys.executable, "-P", str(COMMAND_LINE)]
    host = ["--host", options.host]
    api = [*run, "api", *host, "--port", str(options.port), *(["--reload"] if options.reload else [])]
    front_ends = [Role(name="api", command=api, env=env, stop_s=API_STOP_S)]
    if options.flower:
        flower = [*run, "flower", "--address", FLOWER_HOST, "--port", str(options.flower_port)]
        front_ends.append(Role(name="flower", command=flower, env=env, stop_s=FLOWER_STOP_S))
    names = _worker_names(list(served) or [SWITCHING], options.workers, settings)
    count = sum(map(len, names.values()))
    workers = [
        Role(
            name="worker" if count == 1 else f"worker-{index + 1}",
            command=[*run, "worker", "--worker-name", name],
            env={
                **env,
                **_serves(options, settings, served, checkpoint),
                **placement(index, count, device=options.device, env=os.environ),
            },
            # Redis ends with the launcher as well, so a worker cannot release its jobs.
            parent_death_signal=signal.SIGKILL,
            stop_s=WORKER_STOP_S,
        )
        for index, (checkpoint, name) in enumerate((one, name) for one in names for name in names[one])
    ]
    console = Console([role.name for role in (*([] if redis is None else [redis[1]]), *front_ends, *workers)], settings)
    what = ", ".join(served) or f"the checkpoints in {options.folder}"
    _announce(console, options, what, count, None if redis is None else redis[0])
    return Launcher(
        redis=redis,
        front_ends=front_ends,
        workers=workers,
        console=console,
        url=ports.url_of(options.host, options.port),
        worker_names=list(names.values()),
        are_switching=options.folder is not None,
        count_kept_jobs=partial(kept_jobs, settings.model_copy(update={"redis_url": redis_url})),
    ).run()


def _serves(options: Options, settings: Settings, served: Mapping[str, str], checkpoint: str) -> dict[str, str]:
    """Environment variables of a worker: what it serves. An empty one counts as unset."""
    if options.folder is None:
        return {
            "CELERIAC_CHECKPOINTS": "",
            "CELERIAC_CHECKPOINT": served[checkpoint],
            "CELERIAC_CHECKPOINT_NAME": checkpoint,
        }
    # Workers on one device share its memory. Those on GPUs have one each, as a rule.
    divided = settings.memory_mb == 0 and options.workers > 1 and not has_gpus(options.device, os.environ)
    budget_mb = int(memory_bytes() * BUDGET_SHARE / options.workers) >> 20 if divided else settings.memory_mb
    return {
        "CELERIAC_CHECKPOINTS": str(options.folder),
        "CELERIAC_CHECKPOINT": "",
        "CELERIAC_CHECKPOINT_NAME": "",
        "CELERIAC_MEMORY_MB": str(budget_mb),
    }


def _environment(options: Options, settings: Settings, checkpoint: str, redis_url: str) -> dict[str, str]:
    """Environment variables of all children, in addition to those of this process."""
    return {
        "CELERIAC_REDIS_URL": redis_url,
        "CELERIAC_DEVICE": options.device,
        "CELERIAC_WEIGHTS": options.weights,
        "CELERIAC_COMPUTE": options.compute,
        # Requests without `model` keep using this checkpoint when workers of other checkpoints join.
        "CELERIAC_DEFAULT_CHECKPOINT": settings.default_checkpoint or checkpoint,
        "PYTHONUNBUFFERED": "1",
        # The launcher reads their events, and prints them as the user wants them.
        "CELERIAC_LOG_FORMAT": "json",
    }


def _worker_names(checkpoints: Sequence[str], workers: int, settings: Settings) -> dict[str, list[str]]:
    """The names of the workers of each checkpoint. They are new in each run, unless the user chose one."""
    names: dict[str, list[str]] = {}
    for checkpoint in checkpoints:
        base = (settings.worker_name or f"{checkpoint}-{secrets.token_hex(2)}").partition("@")[0]
        if settings.worker_name is not None and len(checkpoints) > 1:
            base = f"{base}-{checkpoint}"
        names[checkpoint] = [base] if workers == 1 else [f"{base}-{index + 1}" for index in range(workers)]
    return names


def _announce(console: Console, options: Options, what: str, workers: int, data: DataFolder | None) -> None:
    console.info(f"Starting Celeriac with {what} and {workers} worker(s). Ctrl-C stops it.")
    if data is not None:
        console.info(f"Data folder: {data.path}, with {data.program}")
        if data.unread_file is not None:
            console.error(
                f"Warning: {data.unread_file} may have jobs of an older Redis server, and is not read. Start that "
                "server on it, or remove the file."
            )
        console.info(f"Redis for further workers: CELERIAC_REDIS_URL={shlex.quote(data.url)}")
    if options.flower:
        console.info(f"Flower: {ports.url_of(FLOWER_HOST, options.flower_port)}")
    if not ports.is_loopback(options.host):
        console.error(
            f"Warning: everyone who can reach {options.host}:{options.port} can use this server: it has no API keys "
            "yet. Put a proxy with authentication in front of it."
        )
