"""The numbers of a GGUF file, part by part, in a type that safetensors has."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from gguf import GGMLQuantizationType as Format
from gguf import dequantize

from worker.conversion.gguf.file import GgufFile
from worker.conversion.gguf.metadata import GgufTensor
from worker.conversion.gguf.places import Place
from worker.conversion.safetensors_writer import NumberFormat, PlannedTensor

_PLAIN: dict[Format, NumberFormat] = {Format.F32: "F32", Format.F16: "F16", Format.BF16: "BF16"}
#: Numbers that are made at once.
_PART = 1 << 22


def plan_tensors(file: GgufFile, places: Sequence[Place], *, exact: bool) -> list[PlannedTensor]:
    """The tensors that are to be written.

    All matrices get one type: that of the file, or bf16 if some of them are quantised. With `exact`, these become fp32,
    which holds the values of every quantised type. Vectors get it as well if that changes no value, and else stay fp32.
    Raises CheckpointError.
    """
    formats = {file.tensors[place.source].format for place in places if place.is_matrix}
    quantised = formats - _PLAIN.keys()
    target: NumberFormat
    if len(formats) == 1 and not quantised:
        target = _PLAIN[next(iter(formats))]
    else:
        # fp32 holds all values of bf16 and fp16; neither of them holds all those of the other.
        target = "BF16" if quantised and not exact else "F32"
    return [_planned(file, place, target) for place in places]


def _planned(file: GgufFile, place: Place, target: NumberFormat) -> PlannedTensor:
    tensor = file.tensors[place.source]
    # A type that cannot be read is refused before anything is written.
    _values(file, tensor, slice(1))
    if not place.is_matrix:
        whole = _values(file, tensor, slice(None))
        target = target if np.array_equal(_decoded(_encoded(whole, target), target), whole) else "F32"
    return PlannedTensor(
        name=place.name,
        format=target,
        shape=place.shape[::-1] if place.transposed else place.shape,
        parts=lambda: _parts(file, tensor, place, target),
    )


def _parts(file: GgufFile, tensor: GgufTensor, place: Place, target: NumberFormat) -> Iterator[memoryview]:
    if place.transposed:
        whole = _values(file, tensor, slice(None))
        yield from _views(_encoded(np.ascontiguousarray(whole.T), target))
        return
    rows = tensor.shape[0]
    order = _halves(rows, place.interleaved_heads) if place.interleaved_heads else None
    step = max(1, _PART // max(1, int(np.prod(tensor.shape[1:]))))
    for begin in range(0, rows, step):
        part = slice(begin, begin + step)
        values = _values(file, tensor, part if order is None else order[part])
        yield from _views(_encoded(values, target))


def _halves(rows: int, heads: int) -> np.ndarray:
    """The rows of the file in Hugging Face's order: of each head the first channels of all pairs, then the second."""
    return np.arange(rows).reshape(heads, -1, 2).swapaxes(1, 2).reshape(-1)


def _values(file: GgufFile, tensor: GgufTensor, rows: slice | np.ndarray) -> np.ndarray:
    """The values of some rows, as fp32. Raises CheckpointError."""
    try:
        # What overflows is refused below.
        with np.errstate(all="ignore"):
            values: np.ndarray = dequantize(tensor.data[rows], tensor.format)
    except NotImplementedError as error:
        raise file.error(f"tensor {tensor.name} is of type {tensor.format.name}, which cannot be read") from error
    if values.dtype != np.float32 or not np.isfinite(values).all():
        raise file.error(f"is damaged: tensor {tensor.name} has numbers that are not finite")
    return values


def _encoded(values: np.ndarray, target: NumberFormat) -> np.ndarray:
    """fp32 values in a type, rounded to the nearest number of it. bf16 are the upper halves of fp32."""
    match target:
        case "F32":
            return values
        case "F16":
            with np.errstate(over="ignore"):
                return values.astype(np.float16)
        case "BF16":
            bits = np.ascontiguousarray(values).view(np.uint32)
            # To the nearest, and to the even one of two that are equally near.
            return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def _decoded(encoded: np.ndarray, source: NumberFormat) -> np.ndarray:
    if source == "BF16":
        return (encoded.astype(np.uint32) << 16).view(np.float32)
    return encoded.astype(np.float32)


def _views(array: np.ndarray) -> Iterator[memoryview]:
    if array.size:
        yield np.ascontiguousarray(array).data.cast("B")
