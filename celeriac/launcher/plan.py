"""From the options of `celeriac serve` to the roles that it runs. Everything that can be wrong is noticed here."""

from __future__ import annotations

import os
import secrets
import shlex
import signal
import sys
from dataclasses import dataclass
from pathlib import Path

from celeriac.launcher import ports, redis_server
from celeriac.launcher.child import Role
from celeriac.launcher.console import Console
from celeriac.launcher.launcher import Launcher
from celeriac.launcher.placement import placement
from celeriac.launcher.redis_server import DataFolder
from tasks.settings import Settings
from worker.checkpoints.folder import find

#: Flower shows jobs to whoever asks, so that only this machine may.
FLOWER_HOST = "127.0.0.1"

#: How long each role may take to end, in seconds. The API lets running requests end first, a worker hands its jobs
#: back, and Redis writes its file.
API_STOP_S = 10.0
FLOWER_STOP_S = 5.0
WORKER_STOP_S = 10.0
REDIS_STOP_S = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What `celeriac serve` was asked for."""

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
    """Run it all until a signal. Returns the exit code. Raises CeleriacError and CheckpointError before it starts."""
    folder = find(options.checkpoint, settings.checkpoint_dir)
    ports.check_port(options.host, options.port)
    if options.flower:
        ports.check_port(FLOWER_HOST, options.flower_port, option="--flower-port")
    if "redis_url" in settings.model_fields_set:
        return _launch(options, settings, folder.name, None)
    executable = redis_server.find_executable()
    data = DataFolder.take(options.data_dir / str(options.port))
    try:
        redis = Role(
            name="redis",
            command=data.command(executable, settings.redis_appendfsync),
            stop_s=REDIS_STOP_S,
            # The server holds the lock of its folder as long as it lives.
            pass_fds=(data.lock,),
        )
        return _launch(options, settings, folder.name, (data, redis))
    finally:
        data.release()


def _launch(options: Options, settings: Settings, checkpoint: str, redis: tuple[DataFolder, Role] | None) -> int:
    redis_url = settings.redis_url if redis is None else redis[0].url
    env = _environment(options, settings, checkpoint, redis_url)
    run = [sys.executable, "-m", "celeriac"]
    host = ["--host", options.host]
    api = [*run, "api", *host, "--port", str(options.port), *(["--reload"] if options.reload else [])]
    fronts = [Role(name="api", command=api, env=env, stop_s=API_STOP_S)]
    if options.flower:
        flower = [*run, "flower", "--address", FLOWER_HOST, "--port", str(options.flower_port)]
        fronts.append(Role(name="flower", command=flower, env=env, stop_s=FLOWER_STOP_S))
    names = _worker_names(checkpoint, options.workers, settings)
    workers = [
        Role(
            name="worker" if options.workers == 1 else f"worker-{index + 1}",
            command=[*run, "worker", "--name", name],
            env={**env, **placement(index, options.workers, device=options.device, env=os.environ)},
            # Redis ends with the launcher as well, so that there is nobody to hand jobs back to.
            death_signal=signal.SIGKILL,
            stop_s=WORKER_STOP_S,
        )
        for index, name in enumerate(names)
    ]
    console = Console([role.name for role in (*([] if redis is None else [redis[1]]), *fronts, *workers)])
    _announce(console, options, checkpoint, None if redis is None else redis[0])
    return Launcher(
        redis=redis,
        fronts=fronts,
        workers=workers,
        console=console,
        url=ports.url_of(options.host, options.port),
        worker_names=names,
    ).run()


def _environment(options: Options, settings: Settings, checkpoint: str, redis_url: str) -> dict[str, str]:
    """Settings of all children, beside those of our own environment."""
    env = {
        "CELERIAC_REDIS_URL": redis_url,
        "CELERIAC_CHECKPOINT": options.checkpoint,
        "CELERIAC_DEVICE": options.device,
        "CELERIAC_WEIGHTS": options.weights,
        # Requests without `model` stay with this checkpoint when workers of others join.
        "CELERIAC_DEFAULT_CHECKPOINT": settings.default_checkpoint or checkpoint,
        "PYTHONUNBUFFERED": "1",
    }
    if "log_format" not in settings.model_fields_set:
        env["CELERIAC_LOG_FORMAT"] = "console"
    if sys.stdout.isatty() and "NO_COLOR" not in os.environ:
        # Their output is a pipe, but a terminal shows it in the end.
        env["FORCE_COLOR"] = "1"
    return env


def _worker_names(checkpoint: str, workers: int, settings: Settings) -> list[str]:
    """A name for each worker, one that no earlier run has used unless the user chose it."""
    base = (settings.worker_name or f"{checkpoint}-{secrets.token_hex(2)}").partition("@")[0]
    return [base] if workers == 1 else [f"{base}-{index + 1}" for index in range(workers)]


def _announce(console: Console, options: Options, checkpoint: str, data: DataFolder | None) -> None:
    console.say(f"Celeriac starts, with {checkpoint} and {options.workers} worker(s). Ctrl-C ends everything.")
    if data is not None:
        console.say(f"Jobs are kept in {data.path}")
        console.say(f"Redis for further workers: CELERIAC_REDIS_URL={shlex.quote(data.url)}")
    if options.flower:
        console.say(f"Flower: {ports.url_of(FLOWER_HOST, options.flower_port)}")
    if not ports.is_loopback(options.host):
        console.complain(
            f"Warning: whoever reaches {options.host}:{options.port} can use it; there are no API keys yet. Put a "
            "proxy with authentication in front of it."
        )
