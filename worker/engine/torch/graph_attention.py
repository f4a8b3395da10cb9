"""Attention of rows that decode, in shapes that do not depend on where the rows are: what a graph can hold.

`worker.engine.torch.attention` reads each row's keys in place, in calls that are planned anew for every step. Here every
row reads a fixed number of places, chosen on the device from its position, at the price of a copy of what is read.

Shapes: R rows, H heads, G key-value heads, D channels a head, P places of the cache, K places that a row reads.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

#: Rows of a mask are this many numbers or a multiple: the kernels copy others first.
_MASK_MULTIPLE = 8


@dataclass(frozen=True, slots=True)
class GatheredCall:
    """One call of scaled dot-product attention for all rows, each with one position."""

    #: What each row reads (R, K).
    places: Tensor
    #: What is added to the scores (R, 1, 1, K).
    mask: Tensor

    def __call__(self, q: Tensor, keys: Tensor, values: Tensor, scale: float) -> Tensor:
        """q (R, H, D), keys and values (G, P, D) -> (R, H * D)."""
        rows, heads, dim = q.shape
        # The heads of a group stand where the kernel expects queries: they see the same keys, which need no copies.
        y = F.scaled_dot_product_attention(
            q.view(rows, keys.shape[0], -1, dim),
            self._gather(keys),
            self._gather(values),
            attn_mask=self.mask,
            scale=scale,
        )
        return y.reshape(rows, heads * dim)

    def _gather(self, figures: Tensor) -> Tensor:
        """(G, P, D) -> (R, G, K, D)."""
        groups, _, dim = figures.shape
        read = figures.index_select(1, self.places.flatten())
        return read.view(groups, *self.places.shape, dim).transpose(0, 1)


def gathered_calls(
    positions: Tensor, places: Tensor, most_keys: int, windows: Iterable[int], like: Tensor
) -> dict[int, list[GatheredCall]]:
    """The call by window, for rows at `positions` (R,), all below `most_keys`, that write to `places` (R,).

    A row whose keys are fewer than K reads its own newest place instead, under the mask: never one of somebody else,
    whose figures might not be finite. `like` has the masks' dtype and device.
    """
    by_reach = {}
    for reach in {min(window + 1, most_keys) for window in windows}:
        offsets = torch.arange(-(-reach // _MASK_MULTIPLE) * _MASK_MULTIPLE, device=like.device)
        before = positions.clamp(max=reach - 1)  # keys in front of its own that it sees
        seen = offsets <= before[:, None]
        read = torch.where(seen, (places - before)[:, None] + offsets, places[:, None])
        mask = like.new_zeros(1).masked_fill(~seen, -torch.inf)
        by_reach[reach] = [GatheredCall(read, mask[:, None, None])]
    return {window: by_reach[min(window + 1, most_keys)] for window in windows}
