"""What an error of torch or of the device means: no memory left, or a device that this process can no longer use.

Only some of these errors have a type of their own, and which ones do depends on the version of torch. The others are
RuntimeError with a text, which begins in torch's C++ code with the name of the library that failed.
"""

from __future__ import annotations

import re

import torch

#: An allocation that failed, on any device and in any version: `CUDA out of memory`, `CUDA error: out of memory`, `MPS
#: backend out of memory`, `CUBLAS_STATUS_ALLOC_FAILED`, and `DefaultCPUAllocator: can't allocate memory`.
_OUT_OF_MEMORY = re.compile(
    r"out of memory|can't allocate memory|not enough memory|_STATUS_ALLOC_FAILED", re.IGNORECASE
)
#: A call to a device's library that failed: `CUDA error: an illegal memory access was encountered`,
#: `cuDNN error: CUDNN_STATUS_EXECUTION_FAILED`, `HIP error: ...`, `CUDA driver error: ...`.
_LIBRARY_ERROR = re.compile(
    r"\b(CUDA|HIP|cuDNN|MIOpen|CUBLAS|HIPBLAS)( driver)? error\b|device-side assert", re.IGNORECASE
)
#: The library refused these arguments and ran nothing, so the device still works.
_REFUSED_CALL = re.compile(r"_STATUS_(INVALID_VALUE|NOT_SUPPORTED|ARCH_MISMATCH|BAD_PARAM)")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed, in this process's memory or in the device's. The device still works."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and _OUT_OF_MEMORY.search(str(error)) is not None


def is_fatal(error: BaseException) -> bool:
    """Whether this process can no longer use the device, as after a fault in a CUDA context: every later call fails."""
    if not isinstance(error, RuntimeError) or is_out_of_memory(error):
        return False
    accelerator_error = getattr(torch, "AcceleratorError", None)  # since torch 2.8
    if accelerator_error is not None and isinstance(error, accelerator_error):
        return True
    text = str(error)
    return _LIBRARY_ERROR.search(text) is not None and _REFUSED_CALL.search(text) is None
