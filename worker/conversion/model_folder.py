"""A model as Hugging Face's programs save it: the files of one folder, which appear together or not at all."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from worker.checkpoints.errors import CheckpointError, listed
from worker.checkpoints.tokenizers.export import TOKENIZER_NAME
from worker.checkpoints.tokenizers.huggingface_config import CONFIG_NAME, TEMPLATE_NAME
from worker.conversion.safetensors_writer import PlannedTensor, write_safetensors

MODEL_CONFIG, GENERATION_CONFIG, WEIGHTS = "config.json", "generation_config.json", "model.safetensors"
#: Files that a folder of a model may have. A folder with any other file is never replaced.
_REPLACED = ("*.json", "*.safetensors", "*.jinja", "merges.txt", "README.md", "LICENSE", ".gitattributes")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFolder:
    """What is to be written."""

    #: The content of the files of these names.
    config: dict[str, Any]
    generation_config: dict[str, Any]
    tokenizer: dict[str, Any]
    tokenizer_config: dict[str, Any]
    #: None: the model has no template for conversations.
    chat_template: str | None
    tensors: tuple[PlannedTensor, ...]

    @property
    def weight_bytes(self) -> int:
        """Size of the tensors in bytes."""
        return sum(tensor.nbytes for tensor in self.tensors)

    @property
    def parameters(self) -> int:
        """Number of numbers."""
        return sum(prod(tensor.shape) for tensor in self.tensors)

    def write_into(self, folder: Path, progress: Callable[[int], None]) -> None:
        """Write the files into an empty folder. `progress`: see `write_safetensors`. Raises OSError."""
        write_safetensors(folder / WEIGHTS, self.tensors, progress)
        contents = {
            MODEL_CONFIG: self.config,
            GENERATION_CONFIG: self.generation_config,
            TOKENIZER_NAME: self.tokenizer,
            CONFIG_NAME: self.tokenizer_config,
        }
        for name, content in contents.items():
            # Indented, a vocabulary would take twice the space.
            indent = None if name == TOKENIZER_NAME else 2
            _write_text(folder / name, json.dumps(content, ensure_ascii=False, indent=indent) + "\n")
        if self.chat_template is not None:
            _write_text(folder / TEMPLATE_NAME, self.chat_template)


def is_whole(folder: Path) -> bool:
    """Whether `new_folder` has made this folder. Its files then are complete."""
    return (folder / MODEL_CONFIG).is_file()


def check_target(folder: Path, *, replace: bool) -> None:
    """Raise CheckpointError if a model cannot be written to `folder`.

    An empty folder is always accepted, and one with files if `replace` is true and all of them are files of a model.
    """
    if not folder.exists():
        return
    if not folder.is_dir():
        raise CheckpointError(folder, "is not a folder")
    entries = sorted(folder.iterdir())
    if entries and not replace:
        raise CheckpointError(folder, "is not empty. Give another folder, or --force to replace it")
    foreign = [
        entry.name for entry in entries if not entry.is_file() or not any(map(Path(entry.name).match, _REPLACED))
    ]
    if foreign:
        raise CheckpointError(folder, f"is not replaced, because it has more than a model: {listed(foreign)}")


@contextmanager
def new_folder(folder: Path, *, replace: bool = False, wait: bool = False) -> Iterator[Path]:
    """An empty folder to write into. It becomes `folder` if the block ends without an error.

    So a half-written folder is never seen as `folder`. It lies beside it and has a hidden name until then; what an
    interrupted process left there is removed. `replace`: see `check_target`. Two processes never write the same folder:
    the second one waits if `wait` is true. Raises CheckpointError and OSError.
    """
    target = Path(os.path.realpath(folder))
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.partial")
    lock = _locked(part, target, wait=wait)
    try:
        # Another process may have written it while this one waited.
        check_target(target, replace=replace)
        yield part
        _move(part, target)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    finally:
        os.close(lock)


def _locked(part: Path, target: Path, *, wait: bool) -> int:
    """Make the folder `part` or empty it, and lock it. Returns the descriptor that holds the lock."""
    while True:
        part.mkdir(exist_ok=True)
        lock = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The process that held the lock may have renamed or removed the folder.
            if part.exists() and part.stat().st_ino == os.fstat(lock).st_ino:
                for entry in part.iterdir():
                    entry.unlink()
                return lock
        except BlockingIOError as error:
            os.close(lock)
            raise CheckpointError(target, "is being written by another process") from error
        except BaseException:
            os.close(lock)
            raise
        os.close(lock)


def _move(part: Path, target: Path) -> None:
    """Give the folder `part` its name. What has that name is removed."""
    old = target.with_name(f".{target.name}.replaced")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    part.rename(target)
    shutil.rmtree(old, ignore_errors=True)
    parent = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(parent)
    finally:
        os.close(parent)


def _write_text(path: Path, text: str) -> None:
    with path.open("x", encoding="utf-8", newline="") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
