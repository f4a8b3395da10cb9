"""The checkpoints below a folder, and their names for clients."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from worker.checkpoints.errors import CheckpointError
from worker.checkpoints.folder import complete_steps, default_name, is_checkpoint, runs_below, steps_in

#: A folder whose last change is longer ago than this, in seconds, shows the next one in its time.
OLD_S = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A checkpoint that may be whole or not: one step of a run, or a folder without steps."""

    run: Path
    #: The step and its weights; None for a folder without steps.
    step: int | None
    model_file: Path | None
    #: Its name for clients, which no other one has.
    name: str
    #: The name under which clients request the last step of its run; empty if it has none but its own.
    run_name: str

    @property
    def argument(self) -> str:
        """What `celeriac worker --checkpoint` takes for it."""
        return str(self.run) if self.step is None else f"{self.run}@{self.step}"


class FolderError(Exception):
    """A folder that cannot be searched. The message is for people."""


class Finder:
    """Finds the checkpoints in a folder and below it, again and again. For one thread."""

    def __init__(self, folder: Path, *, wall_clock: Callable[[], float] = time.time) -> None:
        """`wall_clock` returns seconds, which are compared with the times of folders."""
        self.folder = folder
        self._wall_clock = wall_clock
        self._runs: dict[Path, _Run] = {}

    def find(self) -> tuple[list[Found], dict[str, str]]:
        """The checkpoints, and why runs are left out, by their paths. Raises FolderError.

        The names depend on nothing but the paths, so that all workers that see the same folder offer the same names:
        each step of a run is called `<run>-<step>` from the first one on, because jobs may wait under the name when a
        second one is written. Only the step after which a folder is named, such as `step_000650`, has the name of the
        folder. Where two runs have the same name, the second one, in the order of the paths, also gets the name of the
        folder above it.
        """
        try:
            next(self.folder.iterdir(), None)
        except OSError as error:
            raise FolderError(f"{self.folder} cannot be read: {error.strerror}") from error
        problems: dict[str, str] = {}
        runs: dict[Path, _Run] = {}
        for path in _runs_in(self.folder):
            try:
                runs[path] = self._read(path)
            except CheckpointError as error:
                problems[str(path)] = str(error)
            except OSError as error:
                problems[str(path)] = f"{path}: cannot be read: {error.strerror}"
        self._runs = runs
        found: list[Found] = []
        taken: set[str] = set()
        for run, prefix in _prefixes(runs.values()):
            mine = run.found(prefix)
            if clash := next((one.name for one in mine if one.name in taken), None):
                problems[str(run.path)] = f"{run.path}: another checkpoint is called {clash}: rename the folder"
                continue
            taken.update(one.name for one in mine)
            found += mine
        return found, problems

    def _read(self, path: Path) -> _Run:
        """The run in a folder. It is not read again while nothing was added to the folder or removed from it."""
        entry = path.stat()
        state = (entry.st_ino, entry.st_mtime_ns)
        known = self._runs.get(path)
        if known is not None and known.state == state:
            return known
        models = steps_in(path)
        # Changes that follow one another at once may leave the same time.
        is_old = self._wall_clock() - entry.st_mtime >= OLD_S
        return _Run(
            path, state if is_old else None, {step: models[step] for step in complete_steps(models)}, bool(models)
        )


class _Run:
    """The folder of a run as it was read."""

    def __init__(self, path: Path, state: tuple[int, int] | None, models: Mapping[int, Path], has_steps: bool) -> None:
        """`state`: of the folder; None if it must be read again. `models`: the weights of the complete steps."""
        self.path = path
        self.state = state
        self._models: dict[int | None, Path | None] = dict(models.items()) if has_steps else {None: None}
        self._named: dict[str, list[Found]] = {}

    def found(self, prefix: str) -> list[Found]:
        """Its checkpoints. `prefix` is put before their names."""
        if prefix not in self._named:
            run_name = prefix + default_name(self.path)
            names = {step: prefix + default_name(self.path, step) for step in self._models}
            self._named[prefix] = [
                Found(
                    run=self.path,
                    step=step,
                    model_file=model_file,
                    name=names[step],
                    run_name="" if names[step] == run_name else run_name,
                )
                for step, model_file in self._models.items()
            ]
        return self._named[prefix]


def _runs_in(folder: Path) -> list[Path]:
    return [*([folder] if is_checkpoint(folder) else []), *runs_below(folder)]


def _prefixes(runs: Iterable[_Run]) -> Iterator[tuple[_Run, str]]:
    """Each run with what is put before its names: nothing, or the name of the folder above it."""
    seen: Counter[str] = Counter()
    for run in runs:
        name = default_name(run.path)
        yield run, f"{run.path.parent.name}-" if seen[name] else ""
        seen[name] += 1
