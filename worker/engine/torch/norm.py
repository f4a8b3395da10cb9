"""RMS norm over the last dimension, without a learned weight."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

#: nanochat uses torch's default, which is the epsilon of the number format.
_EPSILON = torch.full((1,), torch.finfo(torch.float32).eps)


def rms_norm(x: Tensor) -> Tensor:
    """x / sqrt(mean(x^2) + epsilon), with the epsilon of x's number format."""
    if x.is_cpu and x.dtype == torch.float32:  # torch's own runs five operations here, which slows small models
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        return x * torch.addcmul(_EPSILON, length, length, value=1 / x.shape[-1]).rsqrt_()
    return F.rms_norm(x, (x.shape[-1],))
