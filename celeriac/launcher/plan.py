"""Turns the options of `celeriac serve` into the roles to run. Checks everything before a process is started."""

from __future__ import annotations

import os
import secrets
import shlex
import signal
import sys
from dataclasses import dataclass
from pathlib import Path

from celeriac.launcher import ports
from celeriac.launcher.child import Role
from celeriac.launcher.console import Console
from celeriac.launcher.launcher import Launcher
from celeriac.launcher.placement import placement
from celeriac.launcher.redis_server import DataFolder
from tasks.settings import Settings
from worker.checkpoints.folder import find

#: The file that runs the command line.
COMMAND_LINE = Path(__file__).parents[1] / "__main__.py"

#: Flower shows all jobs without a login, so it listens on this machine only.
FLOWER_HOST = "127.0.0.1"

#: How long each role may take to exit, in seconds. The API finishes running requests, a worker releases its jobs, and
#: Redis writes its file.
API_STOP_S = 10.0
FLOWER_STOP_S = 5.0
WORKER_STOP_S = 10.0
REDIS_STOP_S = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The options of `celeriac serve`."""

    checkpoint: str
    host: str
    port: int
    device: str
    weights: str
    reload: bool
    workers: int
    flower: bool
    flower_port: int
    data_dir: Path


def serve(options: Options, settings: Settings) -> int:
    """Run all roles until a signal. Returns the exit code. Raises CeleriacError or CheckpointError before the start."""
    folder = find(options.checkpoint, settings.checkpoint_dir)
    ports.check_port(options.host, options.port)
    if options.flower:
        ports.check_port(FLOWER_HOST, options.flower_port, option="--flower-port")
    if "redis_url" in settings.model_fields_set:
        return _launch(options, settings, folder.name, None)
    data = DataFolder.acquire(options.data_dir / str(options.port))
    try:
        redis = Role(
            name="redis",
            command=data.command(settings.redis_appendfsync),
            stop_s=REDIS_STOP_S,
            # The server holds the lock of its data folder until it exits.
            pass_fds=(data.lock,),
        )
        return _launch(options, settings, folder.name, (data, redis))
    finally:
        data.release()


def _launch(options: Options, settings: Settings, checkpoint: str, redis: tuple[DataFolder, Role] | None) -> int:
    redis_url = settings.redis_url if redis is None else redis[0].url
    env = _environment(options, settings, checkpoint, redis_url)
    # With -P, Python does not put the current folder, which may contain modules of another project, on the import path.
    run = [sys.executable, "-P", str(COMMAND_LINE)]
    host = ["--host", options.host]
    api = [*run, "api", *host, "--port", str(options.port), *(["--reload"] if options.reload else [])]
    front_ends = [Role(name="api", command=api, env=env, stop_s=API_STOP_S)]
    if options.flower:
        flower = [*run, "flower", "--address", FLOWER_HOST, "--port", str(options.flower_port)]
        front_ends.append(Role(name="flower", command=flower, env=env, stop_s=FLOWER_STOP_S))
    names = _worker_names(checkpoint, options.workers, settings)
    workers = [
        Role(
            name="worker" if options.workers == 1 else f"worker-{index + 1}",
            command=[*run, "worker", "--name", name],
            env={**env, **placement(index, options.workers, device=options.device, env=os.environ)},
            # Redis ends with the launcher as well, so a worker cannot release its jobs.
            parent_death_signal=signal.SIGKILL,
            stop_s=WORKER_STOP_S,
        )
        for index, name in enumerate(names)
    ]
    console = Console([role.name for role in (*([] if redis is None else [redis[1]]), *front_ends, *workers)])
    _announce(console, options, checkpoint, None if redis is None else redis[0])
    return Launcher(
        redis=redis,
        front_ends=front_ends,
        workers=workers,
        console=console,
        url=ports.url_of(options.host, options.port),
        worker_names=names,
    ).run()


def _environment(options: Options, settings: Settings, checkpoint: str, redis_url: str) -> dict[str, str]:
    """Environment variables of all children, in addition to those of this process."""
    env = {
        "CELERIAC_REDIS_URL": redis_url,
        "CELERIAC_CHECKPOINT": options.checkpoint,
        "CELERIAC_DEVICE": options.device,
        "CELERIAC_WEIGHTS": options.weights,
        # Requests without `model` keep using this checkpoint when workers of other checkpoints join.
        "CELERIAC_DEFAULT_CHECKPOINT": settings.default_checkpoint or checkpoint,
        "PYTHONUNBUFFERED": "1",
    }
    if "log_format" not in settings.model_fields_set:
        env["CELERIAC_LOG_FORMAT"] = "console"
    if sys.stdout.isatty() and not os.environ.get("NO_COLOR"):
        # Their output is a pipe, which the launcher copies to a terminal.
        env["FORCE_COLOR"] = "1"
    return env


def _worker_names(checkpoint: str, workers: int, settings: Settings) -> list[str]:
    """A name for each worker. It is new in each run, unless the user chose it."""
    base = (settings.worker_name or f"{checkpoint}-{secrets.token_hex(2)}").partition("@")[0]
    return [base] if workers == 1 else [f"{base}-{index + 1}" for index in range(workers)]


def _announce(console: Console, options: Options, checkpoint: str, data: DataFolder | None) -> None:
    console.info(f"Starting Celeriac with {checkpoint} and {options.workers} worker(s). Ctrl-C stops it.")
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
