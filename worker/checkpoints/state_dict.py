"""The index of a weights file: the state dict that torch.save pickled, with a reference to the content of each tensor.

It is read as data (see `pickled_data`). torch/_utils.py and torch/serialization.py show what torch.save writes
(https://github.com/pytorch/pytorch).
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

import torch

from worker.checkpoints.archive import Archive
from worker.checkpoints.errors import CheckpointError
from worker.checkpoints.pickled_data import (
    Call,
    PersistentId,
    PickleError,
    Reference,
    RefusedReferenceError,
    read_pickle,
)
from worker.checkpoints.stored_weights import StoredTensor, StoredWeights

_INDEX = "data.pkl"
#: The largest index, in bytes. That of a model with 32 layers has about 30,000.
_MAX_INDEX = 16 << 20
#: Prefixes that torch.compile and data-parallel wrappers add to every name.
_PREFIXES = ("_orig_mod.", "module.")
#: Types of the supported storages, and names of others, for the error message.
_SUPPORTED = {"Float": torch.float32, "BFloat16": torch.bfloat16, "Half": torch.float16}
_OTHERS = {
    "Double": torch.float64,
    "Long": torch.int64,
    "Int": torch.int32,
    "Short": torch.int16,
    "Char": torch.int8,
    "Byte": torch.uint8,
    "Bool": torch.bool,
    "ComplexFloat": torch.complex64,
    "ComplexDouble": torch.complex128,
}
_STORAGES = {f"torch.{kind}Storage": dtype for kind, dtype in (_SUPPORTED | _OTHERS).items()}
_TENSOR = "torch._utils._rebuild_tensor_v2"
#: Their first argument is a tensor.
_PARAMETERS = ("torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state")
_META = "torch._utils._rebuild_meta_tensor_no_storage"
#: Tensors may share their content, as an embedding and an output matrix do. All of them together may have this many
#: times the size of the file.
_MOST_SHARED = 2


def read_state_dict(archive: Archive) -> StoredWeights:
    """The tensors of a weights file by their names without prefixes.

    Each of them has content and a supported type. Raises CheckpointError.
    """
    path = archive.path
    index = archive.records.get(_INDEX)
    order = archive.records.get("byteorder")
    if index is None:
        raise CheckpointError(path, f"is damaged or was not written by torch.save: it has no record {_INDEX}")
    if order is not None and archive.read(order, 16).decode(errors="replace") != sys.byteorder:
        raise CheckpointError(path, "was saved on a processor with another byte order, which is not supported")
    try:
        content = read_pickle(
            archive.read(index, _MAX_INDEX), references=_is_data_of_torch, functions=_is_function_of_torch
        )
    except RefusedReferenceError as error:
        raise CheckpointError(
            path,
            f"holds more than tensors; {error}. Loading it could run code, so it was not loaded: save only the model's "
            "state dict",
        ) from error
    except PickleError as error:
        raise CheckpointError(
            path, f"is damaged or was not written by torch.save: copy it again (its index: {error})"
        ) from error
    if not isinstance(content, dict) or not content:
        raise CheckpointError(path, "does not hold a state dict (tensors by name)")
    tensors = {_bare(name): tensor for name, tensor in _tensors(archive, content)}
    if len(tensors) != len(content):
        raise CheckpointError(path, "holds tensors twice, with and without a prefix such as _orig_mod.")
    size = sum(record.size for record in archive.records.values())
    if (memory := sum(tensor.nbytes for tensor in tensors.values())) > _MOST_SHARED * size:
        raise CheckpointError(
            path, f"holds {size:,} bytes, but its tensors take {memory:,}: too many of them share their content"
        )
    return StoredWeights(archive, tensors)


def _is_data_of_torch(name: str) -> bool:
    """Whether the index may name this. Naming is harmless: nothing is imported."""
    return _is_function_of_torch(name) or name.startswith("torch.")


def _is_function_of_torch(name: str) -> bool:
    """Whether the index may ask for this call. No call is made."""
    return (
        name.startswith("torch._utils._rebuild_")
        or name in ("torch.Size", "torch.serialization._get_layout", "torch.device")
        or name == "collections.OrderedDict"
    )


def _tensors(archive: Archive, content: dict[object, object]) -> Iterator[tuple[str, StoredTensor]]:
    for name, entry in content.items():
        if isinstance(entry, Call) and entry.function.name in _PARAMETERS and entry.arguments:
            entry = entry.arguments[0]
        if not isinstance(name, str) or not isinstance(entry, Call) or not entry.function.name.startswith("torch._"):
            shown = name if isinstance(name, str | int) else type(name).__name__
            raise CheckpointError(archive.path, f"entry {shown!r} is not a named tensor; only a state dict is expected")
        if entry.function.name == _META:
            raise CheckpointError(
                archive.path, f"tensor {name} has a shape but no content: it was saved from a meta device"
            )
        if entry.function.name != _TENSOR:
            kind = entry.function.name.rpartition("._rebuild_")[2]
            raise CheckpointError(archive.path, f"tensor {name} is a {kind}; ordinary tensors are expected")
        yield name, _stored(archive, name, entry.arguments)


def _stored(archive: Archive, name: str, arguments: tuple[object, ...]) -> StoredTensor:
    """The tensor that torch would rebuild from these arguments. Raises CheckpointError."""
    match arguments:
        case (
            PersistentId(value=("storage", Reference(name=storage), str(key), str(), int(count))),
            int(offset),
            tuple(shape),
            tuple(stride),
            *_,
        ):
            pass
        case _:
            raise CheckpointError(archive.path, f"is damaged: tensor {name} is not described as torch.save does it")
    dtype = _STORAGES.get(storage)
    if dtype not in _SUPPORTED.values():
        found = storage if dtype is None else dtype
        raise CheckpointError(archive.path, f"tensor {name} is of type {found}; fp32, bf16 or fp16 is expected")
    assert dtype is not None
    record = archive.records.get(f"data/{key}")
    numbers = (offset, count, *shape, *stride)
    if record is None or any(type(number) is not int or number < 0 for number in numbers):
        raise CheckpointError(archive.path, f"is damaged: tensor {name} has no content")
    tensor = StoredTensor(record=record, dtype=dtype, shape=shape, stride=stride, offset=offset)
    fits = len(shape) == len(stride) and count * dtype.itemsize == record.size
    if not fits or tensor.count > count or offset + tensor.span > count:
        raise CheckpointError(archive.path, f"is damaged: tensor {name} is larger than its content")
    return tensor


def _bare(name: str) -> str:
    while prefix := next((prefix for prefix in _PREFIXES if name.startswith(prefix)), None):
        name = name.removeprefix(prefix)
    return name
