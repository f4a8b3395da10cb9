"""Packed linear layers against plain ones, the norms, and both forms of rotation."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from tests.helpers.reference import rms_norm
from worker.engine.architecture.angles import base_frequencies
from worker.engine.architecture.rope import Rope
from worker.engine.device import Device
from worker.engine.torch.linear import PACK_FROM_ELEMENTS, PackedLinear, PlainLinear, linear
from worker.engine.torch.norm import LayerNorm, RmsNorm
from worker.engine.torch.rope import RopeTable, pair_channels

CPU = Device("cpu")


class RealCpu(Device):
    """A CPU that rotates without complex numbers, like an accelerator."""

    uses_complex = False


@pytest.mark.skipif(not CPU.packs, reason="this torch has no oneDNN")
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("rows", [1, 2, 8, 33, 300])
def test_a_packed_layer_gives_the_result_of_a_plain_one(rows: int, has_bias: bool) -> None:
    weight = torch.randn(PACK_FROM_ELEMENTS // 512 + 3, 512)
    bias = torch.randn(weight.shape[0]) if has_bias else None
    x = torch.randn(rows, 512)
    packed = linear(weight, CPU, bias=bias)
    assert isinstance(packed, PackedLinear)
    torch.testing.assert_close(packed(x), F.linear(x, weight, bias), atol=1e-3, rtol=1e-4)


def test_small_matrices_stay_plain_and_are_copied() -> None:
    weight, bias = torch.randn(8, 4), torch.randn(8)
    x = torch.randn(3, 4)
    plain = linear(weight, CPU, bias=bias)
    assert isinstance(plain, PlainLinear)
    expected = F.linear(x, weight, bias)
    weight.zero_()
    bias.zero_()
    torch.testing.assert_close(plain(x), expected)


@pytest.mark.parametrize("epsilon", [None, 1e-5])
def test_the_norms_are_those_of_the_reference(epsilon: float | None) -> None:
    x = torch.randn(5, 96) * torch.tensor([1e-6, 1e-3, 1.0, 1e3, 0.0])[:, None]
    weight, bias = torch.randn(96), torch.randn(96)
    torch.testing.assert_close(RmsNorm(epsilon)(x), rms_norm(x, epsilon), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(RmsNorm(epsilon, weight)(x), rms_norm(x, epsilon) * weight, atol=1e-6, rtol=1e-5)
    centred = x - x.mean(dim=-1, keepdim=True)
    expected = rms_norm(centred, 1e-5) * weight + bias
    torch.testing.assert_close(LayerNorm(1e-5, weight, bias)(x), expected, atol=1e-5, rtol=1e-4)


def test_both_forms_of_rotation_agree_at_distant_positions() -> None:
    head_dim, context = 16, 5000
    rope = Rope(frequencies=tuple(base_frequencies(10_000.0, head_dim).tolist()), direction=-1, bf16=True)
    x = torch.randn(4, 3, head_dim)
    for positions in ([0, 3, 255, 7], [256, 4999, 1, 300]):
        rotated = []
        for device in (CPU, RealCpu("cpu")):
            table = RopeTable(rope, context=context, device=device)
            rotated.append(table.rotate(x, table.at(torch.tensor(positions), max(positions))))
        torch.testing.assert_close(rotated[0], rotated[1], atol=1e-5, rtol=1e-5)


def test_pairing_channels_changes_no_dot_product_of_a_query_and_a_key() -> None:
    q, k = torch.randn(12, 5), torch.randn(12, 5)
    paired_q, paired_k = pair_channels(q, 6), pair_channels(k, 6)
    assert paired_q[:6].equal(q[[0, 3, 1, 4, 2, 5]])
    torch.testing.assert_close(paired_q.view(2, 6, 5).mT @ paired_k.view(2, 6, 5), q.view(2, 6, 5).mT @ k.view(2, 6, 5))
