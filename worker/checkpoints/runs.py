"""Describes the checkpoints in a folder, for people who look for the one to serve."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from worker.checkpoints import formats
from worker.checkpoints.errors import CheckpointError
from worker.checkpoints.folder import complete_steps, default_name, find, is_checkpoint, runs_below, steps_in
from worker.checkpoints.tokenizers import load_tokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A run, described by the step that would be served, or a folder in Hugging Face's form."""

    path: Path
    #: The name by which clients would request it.
    name: str
    #: The steps that have both files, in order. A folder in Hugging Face's form has none.
    steps: tuple[int, ...]
    #: The step that would be served; None if there is a problem, or no step.
    step: int | None
    #: Its architecture, and the era if it is nanochat's; None if there is a problem.
    family: str | None
    era: str | None
    #: The kind of its tokenizer; None if it has none that can be used.
    tokenizer: str | None
    #: Why it cannot be served; None if it can.
    problem: str | None


def runs_in(folder: Path) -> list[Run]:
    """The runs below a folder, sorted by their paths. Empty if there are none, or if the folder is a run itself."""
    if is_checkpoint(folder):
        return []
    return [_described(path) for path in runs_below(folder)]


def _described(path: Path) -> Run:
    steps: tuple[int, ...] = ()
    step = family = era = tokenizer = problem = None
    try:
        steps = tuple(complete_steps(steps_in(path)))
        found = find(str(path.absolute()), path.parent)
        checkpoint = formats.load(found)
        step, family, era = found.step, checkpoint.config.family, checkpoint.config.era
        tokenizer = load_tokenizer(found, checkpoint.config.vocab_size).kind
    except CheckpointError as error:
        problem = str(error)
    except OSError as error:
        problem = f"{path}: cannot be read: {error.strerror}"
    return Run(
        path=path,
        name=default_name(path),
        steps=steps,
        step=step,
        family=family,
        era=era,
        tokenizer=tokenizer,
        problem=problem,
    )
