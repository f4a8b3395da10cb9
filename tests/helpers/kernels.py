"""Calls of single compiled kernels, and the logits after a prompt."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from tests.helpers.engines import decode, engine, request
from worker.engine.decoding_model import DecodingModel
from worker.engine.native.library import Matrix, MatrixKind, PackTarget, processor_kinds
from worker.engine.native.model import KINDS


def kinds_by_width() -> list[str]:
    """The best kind of processor that this machine can run as for each width of vectors, the widest first."""
    best: dict[str, str] = {}
    for kind in processor_kinds():
        best.setdefault("-".join(kind.split("-")[:3]), kind)
    return list(best.values())


def packed(kernels: ctypes.CDLL, *weights: Tensor, kind: MatrixKind | None = None, group: int = 0) -> Matrix:
    """The packed matrix of several matrices stacked by rows.

    `kind` None: int8 if there is a `group`, else the kind of the first one. A bf16 matrix with an odd depth becomes
    fp32, as in `NativeModel`: the kernels read pairs.
    """
    outputs, depth = sum(weight.shape[0] for weight in weights), weights[0].shape[1]
    if kind is None:
        kind = MatrixKind.INT8 if group else KINDS[weights[0].dtype]
        if kind is MatrixKind.BF16 and depth % 2:
            kind = MatrixKind.FP32
    matrix = Matrix(outputs, depth, kind=kind, group=group)
    matrix.panels = kernels.celeriac_reserve(kernels.celeriac_packed_bytes(ctypes.byref(matrix)))
    row = 0
    for weight in weights:
        kernels.celeriac_pack(
            ctypes.byref(matrix),
            PackTarget.IN_A_ROW,
            row,
            weight.data_ptr(),
            weight.shape[0],
            KINDS[weight.dtype],
            2,
        )
        row += weight.shape[0]
    return matrix


def multiply(kernels: ctypes.CDLL, matrix: Matrix, x: Tensor, threads: int) -> Tensor:
    """x (rows, depth) times a packed matrix: (rows, outputs)."""
    out = torch.full((x.shape[0], matrix.outputs), torch.nan)
    assert kernels.celeriac_gemm(ctypes.byref(matrix), x.data_ptr(), x.shape[0], out.data_ptr(), threads)
    return out


def prompt_logits(decoding: DecodingModel, prompt: tuple[int, ...], *, chunk: int, others: int = 0) -> Tensor:
    """The logits after a prompt that is prefilled in chunks, while as many `others` decode or prefill."""
    running = engine(decoding, slots=others + 1, kv_tokens=4096, prefill_chunk_tokens=chunk)
    for other in range(others):
        running.add_request(
            request(f"other {other}", tuple(position % 30 for position in range(1 + 9 * other)), 60, every_id=True)
        )
        running.step()
    one = decode(running, request("one", prompt, 2, keep_prompt_logits=True, every_id=True))
    return torch.tensor(one.prompt_logits)
