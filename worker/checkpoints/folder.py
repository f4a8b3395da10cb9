"""Finds the files of a checkpoint by the name or path that the operator gives."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tasks.checkpoint_name import RULE, is_checkpoint_name
from worker.checkpoints.errors import CheckpointError
from worker.checkpoints.huggingface_files import (
    CONFIG,
    cached_folder,
    cached_model,
    looks_like_model,
    other_weights,
    snapshot_in,
    weights_file,
)
from worker.checkpoints.nanochat_home import folders_of

_MODEL_FILE = re.compile(r"model_([0-9]+)\.pt")
_STEP_FOLDER = re.compile(r"step_([0-9]+)")
#: `d4@650` is step 650 of the run in the folder `d4`.
_WITH_STEP = re.compile(r"(.+)@([0-9]{1,18})", re.DOTALL)

#: nanochat's folders of runs, and what is added to the name of a run in them. All stages of one model have folders with
#: the same name, such as `base_checkpoints/d4` and `chatsft_checkpoints/d4`.
STAGES = {
    "base_checkpoints": "",
    "mid_checkpoints": "-mid",
    "sft_checkpoints": "-sft",
    "chatsft_checkpoints": "-sft",
    "chatrl_checkpoints": "-rl",
}
#: The largest number of steps or folders that a message names.
_NAMED = 20
#: How deep runs are searched below a folder: nanochat's own folder has them in the second level.
_DEPTH = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointFolder:
    """The files of a checkpoint: of one step of a training run of nanochat, or of a folder of Hugging Face."""

    path: Path
    #: The name by which clients request the checkpoint.
    name: str
    format: Literal["nanochat", "huggingface"] = "nanochat"
    #: None in Hugging Face's form.
    step: int | None
    #: The weights, or the index of the files that have them.
    model_file: Path
    #: The file that describes the model.
    meta_file: Path


def find(path_or_name: str | None, root: Path, *, name: str | None = None) -> CheckpointFolder:
    """Find a checkpoint by its path, or by its name in the folder `root`. Raises CheckpointError.

    `@` and a step may follow, as in `d4@650`; without them it is the step that the folder is named after, or else the
    last one. `name`: for clients; None: `default_name`.

    Text with a separator is a path, and so are `.` and `..`. An absolute path may be any folder, because the operator
    gives it. A name is looked up in `root`, and then in the current folder. A relative path is looked up in the current
    folder, and then in `root`. What is looked up in `root` never leads out of it, not even by a link. If there is no
    such folder, a name such as `sft:d20` is a run in nanochat's own folder (see `nanochat_home`), and one such as
    `owner/name` a model in the cache of huggingface_hub.
    """
    if path_or_name is None or not path_or_name.strip():
        raise CheckpointError(
            "checkpoint", "no name or path is given: use --checkpoint NAME or set CELERIAC_CHECKPOINT"
        )
    try:
        text, step = _split(path_or_name, root)
        shown, path = _folder(text, root)
        path = snapshot_in(path)
        name = _checked_name(path_or_name, default_name(shown, step) if name is None else name)
        return _files_of(path, name, step)
    except OSError as error:
        raise CheckpointError(path_or_name, f"cannot be read: {error.strerror}") from error


def default_name(path: Path, step: int | None = None) -> str:
    """The name of a run for clients, if none was chosen: that of its folder.

    To it is added the stage of training, if the folder of all runs is one of `STAGES`, and `step` if it is given and
    the folder is not named after it. A folder in the cache of huggingface_hub has the name of its model. Links are not
    resolved: a link named `best` is served under that name.
    """
    absolute = Path(os.path.abspath(path))
    if model := cached_model(absolute):
        return model
    name = absolute.name + STAGES.get(absolute.parent.name, "")
    return name if step is None or step == _step_of(absolute) else f"{name}-{step}"


def steps_in(path: Path) -> dict[int, Path]:
    """The weights files in the folder of a run by their steps, in order. Raises CheckpointError and OSError."""
    models: dict[int, Path] = {}
    for file in sorted(path.iterdir()):
        if (match := _MODEL_FILE.fullmatch(file.name)) is None:
            continue
        if (other := models.setdefault(int(match[1]), file)) is not file:
            raise CheckpointError(
                path, f"{other.name} and {file.name} are the same step: move one of them to another folder"
            )
    return dict(sorted(models.items()))


def step_folder(path: Path, step: int, model_file: Path, *, name: str) -> CheckpointFolder:
    """The files of a complete step in the folder of a run. Raises CheckpointError if `name` cannot be a name."""
    _checked_name(str(path), name)
    return CheckpointFolder(path=path, name=name, step=step, model_file=model_file, meta_file=_meta_of(model_file))


def runs_below(path: Path, *, depth: int = _DEPTH) -> list[Path]:
    """The folders of runs below a folder, at most `depth` levels deep, sorted. Folders that cannot be read are skipped.

    Links to folders are followed, so that a link named `best` is found.
    """
    found: list[Path] = []
    try:
        folders = sorted(entry for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    except OSError:
        return []
    for folder in folders:
        if is_checkpoint(folder):
            found.append(folder)
        elif depth > 1:
            found += runs_below(folder, depth=depth - 1)
    return found


def complete_steps(models: dict[int, Path]) -> list[int]:
    """The steps that have a meta file. Trainers write it last, so a step without one was not saved completely."""
    return [step for step, file in models.items() if _meta_of(file).is_file()]


def is_checkpoint(folder: Path) -> bool:
    """Whether a folder has weights, complete or not. What is wrong with it is said where it is opened."""
    try:
        names = _names_in(snapshot_in(folder))
    except (CheckpointError, OSError):
        return False
    return looks_like_model(names) or any(map(_MODEL_FILE.fullmatch, names))


def _names_in(folder: Path) -> set[str]:
    return {entry.name for entry in folder.iterdir()}


def _split(path_or_name: str, root: Path) -> tuple[str, int | None]:
    """The folder and the step that the operator gave. A folder whose own name ends like a step is that folder."""
    match = _WITH_STEP.fullmatch(path_or_name)
    if match is None or Path(path_or_name).is_dir() or (root / path_or_name).is_dir():
        return path_or_name, None
    return match[1], int(match[2])


def _checked_name(path_or_name: str, name: str) -> str:
    if not is_checkpoint_name(name):
        raise CheckpointError(
            path_or_name,
            f"{name!r} cannot be a checkpoint's name, which is {RULE}: rename the folder, or choose a name with --name",
        )
    return name


def _folder(text: str, root: Path) -> tuple[Path, Path]:
    """The folder of a run, as the operator named it and with all links resolved."""
    given, inside = Path(text), root / text
    first, second = (given, inside) if _is_path(text) else (inside, given)
    path = first if first.is_dir() or not second.is_dir() else second
    if not path.is_dir():
        if runs := folders_of(text):
            run = next((one for one in runs if one.is_dir()), runs[0])
            if not run.is_dir():
                raise _no_run(text, run)
            return run, run.resolve()
        cached = cached_folder(text)
        if cached is None or not cached.is_dir():
            raise _no_folder(given, root, cached)
        return cached, cached.resolve()
    if path is inside and not given.is_absolute() and not path.resolve().is_relative_to(root.resolve()):
        raise CheckpointError(path, f"this leads out of {root}: give the folder's own path instead")
    return path, path.resolve()


def _is_path(text: str) -> bool:
    return "/" in text or "\\" in text or text in (".", "..")


def _no_folder(path: Path, root: Path, cached: Path | None) -> CheckpointError:
    if not path.is_file():
        download = (
            "" if cached is None else f" If it is a model of Hugging Face, get it with `hf download {path}` first."
        )
        return CheckpointError(path, f"there is no such folder.{_others(root)}{download}")
    if path.suffix == ".gguf":
        return CheckpointError(
            path, "this is a GGUF file: `celeriac convert` turns it into a folder that can be served"
        )
    match = _MODEL_FILE.fullmatch(path.name)
    hint = "" if match is None else f", and this step as {path.parent}@{int(match[1])}"
    return CheckpointError(path, f"this is a file. Give the folder that contains it{hint}")


def _no_run(text: str, path: Path) -> CheckpointError:
    names = sorted(run.name for run in runs_below(path.parent, depth=1))
    there = f"it has {_listed(names)}" if names else "it has no runs"
    return CheckpointError(
        text, f"there is no such run in {path.parent}; {there}. NANOCHAT_BASE_DIR names nanochat's folder"
    )


def _files_of(path: Path, name: str, step: int | None) -> CheckpointFolder:
    """The files of a step. None: the step that the folder is named after, or else the last that has both files."""
    models = steps_in(path)
    if not models:
        return _huggingface_files(path, name, step)
    complete = complete_steps(models)
    if step is not None and step not in models:
        there = f"it has {_listed([f'{one}' for one in complete])}" if complete else "it has no complete step"
        raise CheckpointError(path, f"there is no step {step} in this folder; {there}")
    if step is None:
        named = _step_of(path)
        step = named if named in models else max(complete, default=max(models))
    assert step is not None
    meta_file = _meta_of(models[step])
    if not meta_file.is_file():
        raise CheckpointError(
            meta_file, f"this file is missing beside {models[step].name}; it holds the shape of the model"
        )
    return CheckpointFolder(path=path, name=name, step=step, model_file=models[step], meta_file=meta_file)


def _huggingface_files(path: Path, name: str, step: int | None) -> CheckpointFolder:
    names = _names_in(path)
    if not looks_like_model(names):
        raise _no_weights(path, names)
    if step is not None:
        raise CheckpointError(path, f"a folder in Hugging Face's form has no steps: leave @{step} out")
    return CheckpointFolder(
        path=path,
        name=name,
        format="huggingface",
        step=None,
        model_file=weights_file(path, names),
        meta_file=path / CONFIG,
    )


def _step_of(path: Path) -> int | None:
    """The step that a folder is named after, such as 2920 for `step_002920`."""
    match = _STEP_FOLDER.fullmatch(path.name)
    return None if match is None else int(match[1])


def _no_weights(path: Path, names: set[str]) -> CheckpointError:
    runs = [str(run.relative_to(path)) for run in runs_below(path)]
    if runs:
        return CheckpointError(
            path,
            f"this folder contains runs: {_listed(runs)}. Give the folder of one of them; "
            "`celeriac inspect` with this folder describes them",
        )
    if other := other_weights(names):
        return CheckpointError(path, f"no checkpoint that can be served is in this folder. {other}")
    return CheckpointError(
        path,
        "no checkpoint is in this folder: neither nanochat's model_XXXXXX.pt nor Hugging Face's model.safetensors. "
        "Give the folder with the weights",
    )


def _meta_of(model_file: Path) -> Path:
    return model_file.with_name(f"meta_{model_file.stem.removeprefix('model_')}.json")


def _others(root: Path) -> str:
    if not root.is_dir():
        return f" Names are looked up in {root}, which does not exist (CELERIAC_CHECKPOINT_DIR)."
    names = [str(run.relative_to(root)) for run in runs_below(root)]
    there = f"it has {_listed(names)}" if names else "it has no checkpoints"
    return f" Names are looked up in {root}; {there}."


def _listed(names: list[str]) -> str:
    """At most `_NAMED` names: the last ones of more, because the last steps are the ones that people look for."""
    left_out = len(names) - _NAMED
    return ", ".join(names) if left_out <= 0 else f"{', '.join(names[-_NAMED:])}, and {left_out} before them"
