"""Opens the weights of a folder: one safetensors file, or several with an index that says what is in which."""

from __future__ import annotations

from pathlib import Path

from worker.checkpoints.errors import CheckpointError
from worker.checkpoints.huggingface.safetensors import Entry, SafetensorsFile
from worker.checkpoints.huggingface_files import INDEX, checked, file_in
from worker.checkpoints.json_file import read_object, short

#: The tensors of open files by name.
Stored = dict[str, tuple[SafetensorsFile, Entry]]
#: All files of a model stay open while it is loaded.
_MAX_FILES = 500
#: Two tensors are compared in parts of this size, in bytes.
_PART = 1 << 20


def open_weights(file: Path) -> Stored:
    """The stored tensors by name, from a safetensors file or an index. Raises CheckpointError."""
    if file.name != INDEX:
        opened = SafetensorsFile(checked(file))
        return {name: (opened, entry) for name, entry in opened.entries.items()}
    places = _read_index(file)
    files = {name: _open_part(file, name) for name in sorted(set(places.values()))}
    for tensor, name in places.items():
        if tensor not in files[name].entries:
            raise CheckpointError(file, f"says that tensor {tensor} is in {name}, which does not have it")
    for name, part in files.items():
        if other := next((tensor for tensor in part.entries if places.get(tensor) != name), None):
            there = f"says that it is in {places[other]}" if other in places else "does not name it"
            raise CheckpointError(file, f"does not fit the files: tensor {other} is in {name}, but the index {there}")
    return {tensor: (files[name], files[name].entries[tensor]) for tensor, name in places.items()}


def same_content(one: tuple[SafetensorsFile, Entry], other: tuple[SafetensorsFile, Entry]) -> bool:
    """Whether two tensors have the same type, shape and numbers. Raises CheckpointError."""
    (first_file, first), (second_file, second) = one, other
    if (first.dtype, first.shape) != (second.dtype, second.shape):
        return False
    parts = [memoryview(bytearray(min(_PART, first.nbytes))) for _ in range(2)]
    for begin in range(0, first.nbytes, _PART):
        parts = [part[: first.nbytes - begin] for part in parts]
        first_file.read_into(first, begin, parts[0])
        second_file.read_into(second, begin, parts[1])
        if parts[0] != parts[1]:
            return False
    return True


def _read_index(file: Path) -> dict[str, str]:
    """The name of the file of each tensor."""
    places = read_object(checked(file)).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise CheckpointError(file, "has no object `weight_map`, which names the file of each tensor")
    for tensor, name in places.items():
        if not isinstance(name, str):
            raise CheckpointError(file, f"names no file for tensor {tensor}, but {short(name)}")
    if (count := len(set(places.values()))) > _MAX_FILES:
        raise CheckpointError(file, f"names {count} files; {_MAX_FILES} are read")
    return places


def _open_part(index: Path, name: str) -> SafetensorsFile:
    part = file_in(index.parent, name)
    if not part.exists():
        raise CheckpointError(part, f"is missing; {index.name} names it as a part of the weights. Copy it, too")
    return SafetensorsFile(part)
