"""bf16 and fp16 matrices give the bits of the same weights in fp32."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.helpers.engines import checkpoint
from tests.helpers.kernels import multiply, packed, prompt_logits
from worker.engine.device import Device
from worker.engine.native.library import MatrixKind, library
from worker.engine.native.model import NativeModel

CPU = Device("cpu")
STORED = [torch.bfloat16, torch.float16]
#: The first has full attention; the second has grouped queries, windows, value embeddings and smear.
FOLDERS = ["E1b-seed/step_000102", "E7/step_000101"]

pytestmark = pytest.mark.skipif(library() is None, reason="no C compiler, or no kernels for this processor")


@pytest.fixture(autouse=True)
def restored_threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def assert_bits_of_fp32(kernels: ctypes.CDLL, outputs: int, depth: int, dtype: torch.dtype) -> None:
    weight = torch.randn(outputs, depth).to(dtype)
    stored, widened = packed(kernels, weight), packed(kernels, weight, kind=MatrixKind.FP32)
    assert kernels.celeriac_packed_bytes(ctypes.byref(stored)) * 2 == kernels.celeriac_packed_bytes(
        ctypes.byref(widened)
    )
    x = torch.randn(80, depth)
    expected = multiply(kernels, widened, x, 1)
    torch.testing.assert_close(expected, F.linear(x, weight.float()), atol=1e-3, rtol=1e-4)
    for rows in (*range(1, 41), 80):
        for threads in (1, 2, 3):
            assert multiply(kernels, stored, x[:rows].clone(), threads).equal(expected[:rows]), (rows, threads)


@pytest.mark.parametrize("dtype", STORED)
@pytest.mark.parametrize(("outputs", "depth"), [(1, 2), (7, 10), (32, 64), (100, 800), (257, 1602)])
def test_a_gemm_gives_the_bits_of_fp32_in_any_batch(
    kernels: ctypes.CDLL, outputs: int, depth: int, dtype: torch.dtype
) -> None:
    assert_bits_of_fp32(kernels, outputs, depth, dtype)


@pytest.mark.parametrize("dtype", STORED)
def test_the_plain_gemm_gives_the_bits_of_fp32_in_any_batch(plain_kernels: ctypes.CDLL, dtype: torch.dtype) -> None:
    assert_bits_of_fp32(plain_kernels, 100, 802, dtype)


def every_number(dtype: torch.dtype) -> Tensor:
    """All numbers of a format with 16 bits, NaN and infinities included."""
    return torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(dtype)


@pytest.mark.parametrize("rows", [1, 40])
@pytest.mark.parametrize("dtype", STORED)
def test_every_number_is_widened_exactly(
    kernels: ctypes.CDLL, plain_kernels: ctypes.CDLL, dtype: torch.dtype, rows: int
) -> None:
    weight = torch.zeros(2**16, 2, dtype=dtype)
    weight[:, 0] = every_number(dtype)
    for library_ in (kernels, plain_kernels):
        # A sum may turn -0 into 0.
        out = multiply(library_, packed(library_, weight), torch.tensor([[1.0, 0.0]] * rows), 1)
        torch.testing.assert_close(out[-1], weight[:, 0].float(), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", STORED)
@pytest.mark.parametrize("folder", FOLDERS)
def test_a_model_gives_the_bits_of_the_same_weights_in_fp32(
    kernels: ctypes.CDLL, folder: str, dtype: torch.dtype
) -> None:
    found = checkpoint(folder)
    stored = {name: weight.to(dtype) for name, weight in found.weights.items()}
    widened = {name: weight.float() for name, weight in stored.items()}
    prompt = tuple((7 * position) % 30 for position in range(90))
    exact = NativeModel.load(found.config, widened, CPU, kernels)
    expected = prompt_logits(exact, prompt, chunk=1024)
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        model = NativeModel.load(found.config, stored, Device("cpu", fixed_threads=True), kernels)
        assert 2 * model.matrix_bytes <= exact.matrix_bytes + 4096 * 4 * (found.config.n_layer + 1)
        for chunk, others in ((1024, 0), (7, 0), (1, 0), (13, 20)):
            assert prompt_logits(model, prompt, chunk=chunk, others=others).equal(expected), (threads, chunk, others)


def test_stacked_matrices_of_different_formats_are_widened(kernels: ctypes.CDLL) -> None:
    found = checkpoint(FOLDERS[0])
    stored = {
        name: weight.to(torch.bfloat16 if "c_q" in name else torch.float16 if "c_fc" in name else torch.float32)
        for name, weight in found.weights.items()
    }
    widened = {name: weight.float() for name, weight in stored.items()}
    one, other = (
        prompt_logits(NativeModel.load(found.config, weights, CPU, kernels), tuple(range(30)), chunk=1024)
        for weights in (stored, widened)
    )
    assert one.equal(other)
