"""The files of a folder in Hugging Face's form: which ones are the weights, and that none leads out of the folder."""

from __future__ import annotations

import os
import re
from collections.abc import Collection
from pathlib import Path

from worker.checkpoints.errors import CheckpointError
from worker.checkpoints.json_file import read_object
from worker.checkpoints.regular_file import read_bytes

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
#: Weights in other forms, and what to do about each.
_OTHERS = (
    (
        re.compile(r"adapter_model\..+"),
        "an adapter without its base model. Merge both with merge_and_unload() of peft, then use save_pretrained()",
    ),
    (
        re.compile(r".+\.safetensors"),
        f"a part of the weights or weights under another name, but {INDEX} is missing, which names the parts",
    ),
    (
        re.compile(r"pytorch_model.*\.bin(\.index\.json)?|consolidated\..+\.pth"),
        "pickled weights, which could run code and are not read. Where you trust them, write safetensors with "
        "transformers: AutoModelForCausalLM.from_pretrained(FOLDER).save_pretrained(NEW_FOLDER)",
    ),
    (re.compile(r".+\.gguf"), "a GGUF file: `celeriac convert` turns it into a folder that can be served"),
    (re.compile(r"tf_model\.h5|flax_model\.msgpack|.+\.onnx"), "weights in a form that is not supported"),
)
#: A model in the cache of huggingface_hub: `models--<owner>--<name>`. In `snapshots/<commit>` are links to its `blobs`.
_CACHED = re.compile(r"models--(?:[^/]+?--)?(.+)")
_SNAPSHOTS = "snapshots"
#: A model on Hugging Face: its owner and its name.
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
#: The length of the name of a commit, at most.
_MAX_COMMIT_BYTES = 100


def looks_like_model(names: Collection[str]) -> bool:
    """Whether a folder with files of these names is meant to be a model in this form, complete or not."""
    return WEIGHTS in names or INDEX in names or (CONFIG in names and other_weights(names) is not None)


def other_weights(names: Collection[str]) -> str | None:
    """What weights in another form are in a folder, and what to do about them; None if there are none."""
    for pattern, what in _OTHERS:
        if name := min((name for name in names if pattern.fullmatch(name)), default=None):
            return f"{name} is {what}"
    return None


def weights_file(folder: Path, names: Collection[str]) -> Path:
    """`model.safetensors`, or else its index. Raises CheckpointError."""
    if CONFIG not in names:
        raise CheckpointError(folder / CONFIG, "this file is missing beside the weights; it describes the model")
    if name := next((name for name in (WEIGHTS, INDEX) if name in names), None):
        return folder / name
    raise CheckpointError(folder, f"there is no {WEIGHTS} in this folder. {other_weights(names)}")


def parts_of(weights: Path) -> list[Path]:
    """The files that the weights file or its index names; without those whose names are no names of files.

    Empty if the index cannot be read.
    """
    if weights.name != INDEX:
        return [weights]
    try:
        names = {name for name in read_object(weights).get("weight_map", {}).values() if isinstance(name, str)}
    except (AttributeError, CheckpointError):
        return []
    return [weights.with_name(name) for name in sorted(names) if _is_file_name(name)]


def file_in(folder: Path, name: str) -> Path:
    """The file with this name, if neither the name nor a link leads out of the folder. Raises CheckpointError.

    Links of a model in the cache of huggingface_hub may lead to other files of that model.
    """
    if not _is_file_name(name):
        raise CheckpointError(folder, f"{name!r} is not the name of a file in this folder")
    file, home = folder / name, folder.resolve()
    if home.parent.name == _SNAPSHOTS and cached_model(home) is not None:
        home = home.parent.parent
    # Since Python 3.13, a loop of links is no error here; opening the file is one.
    try:
        target = file.resolve()
    except (OSError, RuntimeError) as error:
        raise CheckpointError(file, f"cannot be read: {error}") from error
    if not target.is_relative_to(home):
        raise CheckpointError(file, "is a link that leads out of this folder: put the file itself here")
    return file


def checked(file: Path) -> Path:
    """A file of a checkpoint, if no link leads out of its folder: see `file_in`. Raises CheckpointError."""
    return file_in(file.parent, file.name)


def cached_folder(text: str) -> Path | None:
    """The folder of a model such as `owner/name` in the cache of huggingface_hub, whether or not it is there.

    None if `text` does not name a model in this way.
    """
    if _REPOSITORY.fullmatch(text) is None:
        return None
    given, home = os.environ.get("HF_HUB_CACHE"), os.environ.get("HF_HOME") or "~/.cache/huggingface"
    cache = Path(given) if given else Path(home) / "hub"
    return cache.expanduser() / f"models--{text.replace('/', '--')}"


def cached_model(path: Path) -> str | None:
    """The name of a model, if `path` is its folder or a snapshot of it in the cache of huggingface_hub; else None."""
    folder = path.parent.parent if path.parent.name == _SNAPSHOTS else path
    match = _CACHED.fullmatch(folder.name)
    return None if match is None else match[1]


def snapshot_in(path: Path) -> Path:
    """The snapshot to take from the folder of a model in the cache of huggingface_hub; other folders as they are.

    It is that of the branch `main`, or else the only one. Raises CheckpointError.
    """
    snapshots = path / _SNAPSHOTS
    if _CACHED.fullmatch(path.name) is None or not snapshots.is_dir():
        return path
    try:
        commit = read_bytes(path / "refs" / "main", _MAX_COMMIT_BYTES).decode().strip()
    except (CheckpointError, UnicodeDecodeError):
        commit = ""
    if _is_file_name(commit) and (snapshots / commit).is_dir():
        return snapshots / commit
    found = sorted(snapshots.iterdir())
    if len(found) == 1:
        return found[0]
    raise CheckpointError(
        path, f"has {len(found)} snapshots and no branch main: give one of the folders in {_SNAPSHOTS}"
    )


def _is_file_name(name: str) -> bool:
    return name not in ("", ".", "..") and not set(name) & set("/\\\0")
