"""The activations of the kernels are those of torch in float64, with errors of a few units in the last place."""

from __future__ import annotations

import ctypes
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from worker.engine.architecture.config import Activation
from worker.engine.native.library import ACTIVATIONS, library

EXACT: dict[Activation, Callable[[Tensor], Tensor]] = {
    "relu_squared": lambda x: F.relu(x).square(),
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
}
#: Units in the last place of the result, and, for a GELU of a negative x, of x.
MOST_UNITS = 8
#: e^x ends at the largest and the smallest numbers that have all digits.
NEARLY_ZERO = 1e-36

pytestmark = pytest.mark.skipif(library() is None, reason="no C compiler, or no kernels for this processor")


def activated(kernels: ctypes.CDLL, activation: Activation, x: Tensor) -> Tensor:
    out = torch.empty_like(x)
    kernels.celeriac_activate(ACTIVATIONS[activation], x.data_ptr(), len(x), out.data_ptr())
    return out


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_an_activation_is_exact_to_a_few_units_in_the_last_place(kernels: ctypes.CDLL, activation: Activation) -> None:
    sizes = torch.cat((torch.logspace(-30, 2, 20_000), torch.linspace(0, 30, 300_000)))
    x = torch.cat((sizes, -sizes))
    exact = EXACT[activation](x.double())
    unit = torch.finfo(torch.float32).eps * exact.abs()
    if activation.startswith("gelu"):
        unit = torch.where(x < 0, unit + torch.finfo(torch.float32).eps * x.abs(), unit)
    error = (activated(kernels, activation, x).double() - exact).abs()
    assert (error <= MOST_UNITS * unit + NEARLY_ZERO).all()


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_nan_stays_nan_and_the_largest_numbers_are_right(kernels: ctypes.CDLL, activation: Activation) -> None:
    x = torch.tensor([float("nan"), float("inf"), 1e18, -1e18] * 8)
    nan, infinite, large, negative = activated(kernels, activation, x)[:4].tolist()
    assert nan != nan
    assert infinite == float("inf")
    assert large == pytest.approx(1e36 if activation == "relu_squared" else 1e18)
    assert abs(negative) < 1e-15
