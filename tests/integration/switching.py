"""A folder of checkpoints, and switching workers that serve it, as real processes."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Mapping
from pathlib import Path

from bench.processes import children, is_gone
from tasks.job import Job
from tasks.store import keys
from tasks.switching_info import ChildState, SwitchingInfo
from tasks.worker_info import WorkerInfo
from tests.integration.cluster import DEADLINE_S, TINY, Cluster, Engine, long_generation
from tests.integration.stack import CHECKPOINTS, SHIPPED, START_S, Process, until

#: The checkpoints of a folder: two whose folders are named after their steps, which have the vocabulary of the guide.
ONE, TWO = TINY.name, SHIPPED
SOURCES = {ONE: TINY, TWO: CHECKPOINTS / SHIPPED}
#: A budget in MiB in which one of them fits.
ROOM_FOR_ONE = 300


class SwitchingCluster:
    """A client of each checkpoint in a folder, and the processes."""

    def __init__(self, redis_url: str, folder: Path, **settings: str) -> None:
        """`settings` are those of all processes."""
        self.models = folder / "models"
        self.models.mkdir()
        for name, source in SOURCES.items():
            shutil.copytree(source, self.models / name)
        settings = {"slots": "2", "memory_mb": str(ROOM_FOR_ONE), **settings}
        #: What clients see of each checkpoint.
        self.of: Mapping[str, Cluster] = {
            name: Cluster(redis_url, folder, self.models / name, **settings) for name in SOURCES
        }
        self.redis = self.of[ONE].redis
        self.stack = self.of[ONE].stack

    def close(self) -> None:
        """End all processes and connections."""
        processes = [process for view in self.of.values() for process in view.stack.processes]
        families = [pid for process in processes for pid in family(process.pid)]
        for view in self.of.values():
            view.close()
        until(lambda: all(map(is_gone, families)), "the end of all children", timeout_s=DEADLINE_S)

    def worker(self, name: str = "s", **settings: str) -> Process:
        """Start a switching worker, and wait until it offers both checkpoints."""
        module, folder = "tests.helpers.gated_switching_worker", str(self.models)
        process = self.stack.run(
            "switching",
            *(sys.executable, "-m", module, "worker", "--checkpoints", folder, "--worker-name", name),
            **settings,
        )
        until(lambda: self._offers(process), f"the offers of {name}:\n{process.output}", timeout_s=START_S)
        return process

    def info(self, process: Process) -> SwitchingInfo | None:
        """The last heartbeat of a switching worker; None if it counts as gone."""
        for key in self.redis.scan_iter(keys.switching_worker("*")):
            found = SwitchingInfo.from_hash(self.redis.hgetall(key))
            if found.pid == process.pid:
                return found
        return None

    def until_states(self, process: Process, states: dict[str, ChildState]) -> SwitchingInfo:
        """Wait until the children of a switching worker do this."""

        def there() -> SwitchingInfo | None:
            info = self.info(process)
            return info if info and {one.checkpoint: one.state for one in info.children} == states else None

        return until(there, f"{states} of {process.name}:\n{process.output}", timeout_s=START_S)

    def loaded(self, name: str) -> WorkerInfo:
        """The worker of a checkpoint, once there is one."""
        return until(lambda: next(iter(self.of[name].workers_now()), None), f"a worker of {name}", timeout_s=START_S)

    def digest(self, name: str) -> str:
        """The digest in the card of a checkpoint."""
        return self.redis.hget(keys.card(name), "digest").decode()

    def engine(self, name: str) -> Engine:
        """The engine of the worker of a checkpoint, once there is one."""
        return Engine.of(children(self.loaded(name).pid)[0])

    def run_one(self, name: str) -> Job:
        """A short job, once it has ended."""
        return self.of[name].finished(self.of[name].submit(long_generation(max_tokens=5)))

    def begin(self, name: str, *, tokens: int = 5) -> str:
        """Id of a job in the middle of its text, of a checkpoint that is loaded. Its engine is stopped."""
        return self.of[name].begin([self.engine(name)], [long_generation()], tokens=tokens)[0]

    def load_takes(self, seconds: float) -> None:
        """Let the queue believe that a load takes so long. What is loaded is preferred for a multiple of it."""
        for name in self.of:
            self.redis.hset(keys.pace(name), "load_ms", round(seconds * 1000))

    def spare(self, process: Process) -> int:
        """The spare child of a switching worker, once its engine process runs."""

        def found() -> int | None:
            info = self.info(process)
            workers = {one.pid for view in self.of.values() for one in view.workers_now()}
            if info is None or any(one.state is ChildState.LOADING for one in info.children):
                return None
            spares = [pid for pid in children(process.pid) if pid not in workers and "child" in command(pid)]
            return next((pid for pid in spares if children(pid)), None)

        return until(found, f"a spare child of {process.name}", timeout_s=START_S)

    def _offers(self, process: Process) -> bool:
        assert process.returncode is None, process.output
        info = self.info(process)
        return info is not None and {*map(bytes.decode, self.redis.hkeys(keys.offers(info.name)))} >= {*self.of}


def family(pid: int) -> list[int]:
    """A process and all that it has started, directly and indirectly."""
    return [pid, *(one for child in children(pid) for one in family(child))]


def command(pid: int) -> str:
    """The command line of a process; empty if it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


def kill(pid: int) -> None:
    """Send SIGKILL to one process."""
    os.kill(pid, signal.SIGKILL)
