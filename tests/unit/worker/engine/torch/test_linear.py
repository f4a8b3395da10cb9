"""Packed linear layers against plain ones, the norm, and both forms of rotation."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from tests.helpers.reference import norm
from worker.engine.device import Device
from worker.engine.torch.linear import PACK_FROM_ELEMENTS, PackedLinear, PlainLinear, linear
from worker.engine.torch.norm import rms_norm
from worker.engine.torch.rope import Rope, pair_channels

CPU = Device("cpu")


class RealCpu(Device):
    """A CPU that rotates without complex numbers, like an accelerator."""

    uses_complex = False


@pytest.mark.skipif(not CPU.packs, reason="this torch has no oneDNN")
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("rows", [1, 2, 8, 33, 300])
def test_a_packed_layer_gives_the_result_of_a_plain_one(rows: int, relu: bool) -> None:
    weight = torch.randn(PACK_FROM_ELEMENTS // 512 + 3, 512)
    x = torch.randn(rows, 512)
    packed = linear(weight, CPU, relu=relu)
    assert isinstance(packed, PackedLinear)
    expected = F.linear(x, weight)
    torch.testing.assert_close(packed(x), expected.relu() if relu else expected, atol=1e-3, rtol=1e-4)


def test_small_matrices_stay_plain_and_are_copied() -> None:
    weight = torch.randn(8, 4)
    x = torch.randn(3, 4)
    plain = linear(weight, CPU, relu=True)
    assert isinstance(plain, PlainLinear)
    expected = F.linear(x, weight).relu()
    weight.zero_()
    torch.testing.assert_close(plain(x), expected)


def test_the_norm_is_that_of_the_reference() -> None:
    x = torch.randn(5, 96) * torch.tensor([1e-6, 1e-3, 1.0, 1e3, 0.0])[:, None]
    torch.testing.assert_close(rms_norm(x), norm(x), atol=1e-6, rtol=1e-5)


def test_both_forms_of_rotation_agree_at_distant_positions() -> None:
    head_dim, context = 16, 5000
    x = torch.randn(4, 3, head_dim)
    for positions in ([0, 3, 255, 7], [256, 4999, 1, 300]):
        rotated = []
        for device in (CPU, RealCpu("cpu")):
            rope = Rope(head_dim, 10_000.0, bf16=True, context=context, device=device)
            rotated.append(rope.rotate(x, rope.at(torch.tensor(positions), max(positions))))
        torch.testing.assert_close(rotated[0], rotated[1], atol=1e-5, rtol=1e-5)


def test_pairing_channels_changes_no_dot_product_of_a_query_and_a_key() -> None:
    q, k = torch.randn(12, 5), torch.randn(12, 5)
    paired_q, paired_k = pair_channels(q, 6), pair_channels(k, 6)
    assert paired_q[:6].equal(q[[0, 3, 1, 4, 2, 5]])
    torch.testing.assert_close(paired_q.view(2, 6, 5).mT @ paired_k.view(2, 6, 5), q.view(2, 6, 5).mT @ k.view(2, 6, 5))
