"""Finds the files of a checkpoint by the name or path that the operator gives."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from worker.checkpoints.errors import CheckpointError

_MODEL_FILE = re.compile(r"model_([0-9]+)\.pt")
_STEP_FOLDER = re.compile(r"step_([0-9]+)")
#: Names are used in Redis keys, names of Celery queues, and URLs.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointFolder:
    """The files of one step of one training run."""

    path: Path
    #: The name by which clients request the checkpoint: that of the folder.
    name: str
    step: int
    model_file: Path
    meta_file: Path


def name_of(path_or_name: str | None) -> str:
    """The name by which clients request the checkpoint that the operator gave. Raises CheckpointError."""
    if path_or_name is None or not path_or_name.strip():
        raise CheckpointError(
            "checkpoint", "no name or path is given: use --checkpoint NAME or set CELERIAC_CHECKPOINT"
        )
    # Links are not resolved here: a link named `best` is served under that name.
    name = Path(os.path.abspath(path_or_name)).name if _is_path(path_or_name) else path_or_name
    if _NAME.fullmatch(name) is None:
        raise CheckpointError(
            path_or_name,
            f"{name!r} cannot be a checkpoint's name: rename the folder to at most 128 letters, digits, '.', '_' and "
            "'-', beginning with a letter or digit",
        )
    return name


def find(path_or_name: str | None, root: Path) -> CheckpointFolder:
    """Find a checkpoint by its path, or by its name in the folder `root`. Raises CheckpointError.

    Text with a separator is a path, and so are `.` and `..`. A path may be any folder, because the operator gives it. A
    name is looked up in `root`, and then in the current folder. It never leads out of `root`, not even by a link.
    """
    name = name_of(path_or_name)
    try:
        return _files_of(_folder(path_or_name or "", name, root), name)
    except OSError as error:
        raise CheckpointError(path_or_name or "", f"cannot be read: {error.strerror}") from error


def _folder(path_or_name: str, name: str, root: Path) -> Path:
    path = Path(path_or_name)
    if not _is_path(path_or_name) and (root / name).is_dir():
        path = root / name
        if not path.resolve().is_relative_to(root.resolve()):
            raise CheckpointError(path, f"the link leads out of {root}: give the folder's own path instead")
    if not path.is_dir():
        raise CheckpointError(path, f"there is no such folder.{_others(root)}")
    return path.resolve()


def _is_path(text: str) -> bool:
    return "/" in text or "\\" in text or text in (".", "..")


def _files_of(path: Path, name: str) -> CheckpointFolder:
    """The files of the step that the folder is named after, or else of the last step that has both files."""
    models: dict[int, Path] = {}
    for file in sorted(path.iterdir()):
        if (match := _MODEL_FILE.fullmatch(file.name)) is None:
            continue
        if (other := models.setdefault(int(match[1]), file)) is not file:
            raise CheckpointError(
                path, f"{other.name} and {file.name} are the same step: move one of them to another folder"
            )
    if not models:
        raise CheckpointError(path, "no model_XXXXXX.pt in this folder, so it is not a nanochat checkpoint")
    named = _STEP_FOLDER.fullmatch(path.name)
    if named is not None and int(named[1]) in models:
        step = int(named[1])
    else:
        # Trainers write the meta file last, so a step without one was not saved completely.
        step = max((step for step, file in models.items() if _meta_of(file).is_file()), default=max(models))
    meta_file = _meta_of(models[step])
    if not meta_file.is_file():
        raise CheckpointError(
            meta_file, f"this file is missing beside {models[step].name}; it holds the shape of the model"
        )
    return CheckpointFolder(path=path, name=name, step=step, model_file=models[step], meta_file=meta_file)


def _meta_of(model_file: Path) -> Path:
    return model_file.with_name(f"meta_{model_file.stem.removeprefix('model_')}.json")


def _others(root: Path) -> str:
    if not root.is_dir():
        return f" Names are looked up in {root}, which does not exist (CELERIAC_CHECKPOINT_DIR)."
    names = sorted(entry.name for entry in root.iterdir() if entry.is_dir())
    there = f"it has {', '.join(names)}" if names else "it has no checkpoints"
    return f" Names are looked up in {root}; {there}."
