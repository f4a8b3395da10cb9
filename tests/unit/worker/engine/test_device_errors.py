"""Which errors mean that there is no memory, and which that the device is broken, with and without types of their own.

The texts are those of torch 2.6 to 2.13. Older versions raise a plain RuntimeError for a broken CUDA context.
"""

from __future__ import annotations

import pytest
import torch

from worker.engine.device_errors import is_fatal, is_out_of_memory

#: The type since torch 2.8.
ACCELERATOR_ERROR: type[RuntimeError] = getattr(torch, "AcceleratorError", RuntimeError)
BROKEN = [
    "CUDA error: an illegal memory access was encountered\nCUDA kernel errors might be asynchronously reported",
    "CUDA error: device-side assert triggered",
    "CUDA error: unspecified launch failure",
    "CUDA error: misaligned address",
    "CUDA error: uncorrectable ECC error encountered",
    "CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx( handle, opa, opb, m, n, k)`",
    "CUDA driver error: device-side assert triggered",
    "cuDNN error: CUDNN_STATUS_EXECUTION_FAILED",
    "HIP error: an illegal memory access was encountered",
]
NO_MEMORY = [
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.15 GiB",
    "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported",
    "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    "MPS backend out of memory (MPS allocated: 18.00 GiB)",
    "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate 9",
]
HARMLESS = [
    "mat1 and mat2 shapes cannot be multiplied (1x3 and 4x5)",
    "CUDA error: CUBLAS_STATUS_NOT_SUPPORTED when calling `cublasGemmEx( handle, opa, opb, m, n, k)`",
    "Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu!",
]


@pytest.mark.parametrize("text", BROKEN)
@pytest.mark.parametrize("kind", [RuntimeError, ACCELERATOR_ERROR])
def test_a_broken_device_is_fatal(kind: type[RuntimeError], text: str) -> None:
    assert is_fatal(kind(text))
    assert not is_out_of_memory(kind(text))


@pytest.mark.parametrize("text", BROKEN)
def test_a_broken_device_is_fatal_where_torch_has_no_type_for_it(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.delattr(torch, "AcceleratorError", raising=False)
    assert is_fatal(RuntimeError(text))


@pytest.mark.parametrize("text", NO_MEMORY)
@pytest.mark.parametrize("kind", [RuntimeError, ACCELERATOR_ERROR])
def test_a_failed_allocation_breaks_nothing(kind: type[RuntimeError], text: str) -> None:
    assert is_out_of_memory(kind(text))
    assert not is_fatal(kind(text))


@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError("no text that says so")])
def test_errors_of_memory_are_known_by_their_type(error: Exception) -> None:
    assert is_out_of_memory(error)
    assert not is_fatal(error)


@pytest.mark.parametrize("text", HARMLESS)
def test_other_errors_mean_neither(text: str) -> None:
    for error in (RuntimeError(text), ValueError(text)):
        assert not is_fatal(error)
        assert not is_out_of_memory(error)


def test_torchs_own_error_for_a_failed_allocation_is_known() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 50)
    assert is_out_of_memory(caught.value)
