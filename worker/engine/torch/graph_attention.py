"""Attention of decoding rows for CUDA graphs: its shapes do not depend on where the rows lie.

`worker.engine.torch.attention` reads the keys of each row in place, in calls that are planned for every step. Here
every row reads a fixed number of places, which the device computes from the row's position. The price is a copy of the
keys and values that are read.

Shapes: R rows, H heads, G key-value heads, D channels of a head, P places of the cache, K places that a row reads.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

#: The length of a mask's rows is a multiple of this: the kernels first copy masks of other lengths.
_MASK_MULTIPLE = 8


@dataclass(frozen=True, slots=True)
class GraphAttentionCall:
    """One call of scaled dot-product attention for all rows, each with one position."""

    #: The places that each row reads (R, K).
    places: Tensor
    #: Added to the scores (R, 1, 1, K).
    mask: Tensor

    def __call__(self, q: Tensor, keys: Tensor, values: Tensor, scale: float) -> Tensor:
        """q (R, H, D), keys and values (G, P, D) -> (R, H * D)."""
        rows, heads, dim = q.shape
        # The heads of a group take the dimension of the queries: they attend to the same keys, which are not repeated.
        y = F.scaled_dot_product_attention(
            q.view(rows, keys.shape[0], -1, dim),
            self._read(keys),
            self._read(values),
            attn_mask=self.mask,
            scale=scale,
        )
        return y.reshape(rows, heads * dim)

    def _read(self, memory: Tensor) -> Tensor:
        """Copy the places of each row: (G, P, D) -> (R, G, K, D)."""
        groups, _, dim = memory.shape
        read = memory.index_select(1, self.places.flatten())
        return read.view(groups, *self.places.shape, dim).transpose(0, 1)


def graph_attention_calls(
    positions: Tensor, places: Tensor, max_keys: int, windows: Iterable[int], like: Tensor
) -> dict[int, list[GraphAttentionCall]]:
    """The call for each window, for rows at `positions` (R,), all below `max_keys`, that write to `places` (R,).

    A row with fewer keys than K reads its own newest place instead, under the mask. It never reads a place of another
    sequence, whose values may be NaN or infinite. `like` has the dtype and the device of the masks.
    """
    by_reach = {}
    for reach in {min(window + 1, max_keys) for window in windows}:
        offsets = torch.arange(-(-reach // _MASK_MULTIPLE) * _MASK_MULTIPLE, device=like.device)
        before = positions.clamp(max=reach - 1)  # keys before its own that a row attends to
        visible = offsets <= before[:, None]
        read = torch.where(visible, (places - before)[:, None] + offsets, places[:, None])
        mask = like.new_zeros(1).masked_fill(~visible, -torch.inf)
        by_reach[reach] = [GraphAttentionCall(read, mask[:, None, None])]
    return {window: by_reach[min(window + 1, max_keys)] for window in windows}
