"""Describes the runs in a folder, for people who look for the one to serve."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from worker.checkpoints import formats
from worker.checkpoints.errors import CheckpointError
from worker.checkpoints.folder import complete_steps, default_name, find, runs_below, steps_in
from worker.checkpoints.tokenizers import load_tokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A run, described by the step that would be served."""

    path: Path
    #: The name by which clients would request it.
    name: str
    #: The steps that have both files, in order.
    steps: tuple[int, ...]
    #: The step that would be served, and its architecture era; None if there is a problem.
    step: int | None
    era: str | None
    #: The kind of its tokenizer; None if it has none that can be used.
    tokenizer: str | None
    #: Why it cannot be served; None if it can.
    problem: str | None


def runs_in(folder: Path) -> list[Run]:
    """The runs below a folder, sorted by their paths. Empty if there are none, or if the folder is a run itself."""
    try:
        if steps_in(folder):
            return []
    except (CheckpointError, OSError):
        # What is wrong with this folder is reported where it is opened as a run.
        return []
    return [_described(path) for path in runs_below(folder)]


def _described(path: Path) -> Run:
    steps: tuple[int, ...] = ()
    step = era = tokenizer = problem = None
    try:
        steps = tuple(complete_steps(steps_in(path)))
        found = find(str(path.absolute()), path.parent)
        checkpoint = formats.load(found)
        step, era = found.step, checkpoint.config.era
        tokenizer = load_tokenizer(found, checkpoint.config.vocab_size).kind
    except CheckpointError as error:
        problem = str(error)
    except OSError as error:
        problem = f"{path}: cannot be read: {error.strerror}"
    return Run(
        path=path, name=default_name(path), steps=steps, step=step, era=era, tokenizer=tokenizer, problem=problem
    )
