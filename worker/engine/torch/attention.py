"""Attention of a flattened batch: decoding rows and prompt chunks of any length, each over its own extent of the cache.

The keys that a position attends to depend only on the window of the layer. So the calls are planned once for each
window of the model, and all layers with that window use them.

Shapes: T positions of the batch, H heads, G key-value heads, D channels of a head, P places of the cache.
"""

from __future__ import annotations

from collections.abc import Sequence as Rows
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from worker.engine.scheduler import Chunk
from worker.engine.torch.row_groups import Span, group_rows

#: The fixed cost of an attention call, as the bytes of keys and values that are read in the same time.
CALL_COST_BYTES = 120_000


class AttentionCall(Protocol):
    """Attention of some positions of a batch."""

    def __call__(self, q: Tensor, keys: Tensor, values: Tensor, scale: float) -> Tensor:
        """q (T, H, D), keys and values (G, P, D) -> (positions of the call, H * D)."""
        ...


@dataclass(frozen=True, slots=True)
class Call:
    """One call of scaled dot-product attention for positions `first` to `first + count * queries - 1` of the batch."""

    first: int
    #: Number of rows of the call, each with `queries` positions.
    count: int
    queries: int
    #: Row i reads the places `start + i * gap` to `start + i * gap + keys - 1`.
    start: int
    gap: int
    keys: int
    #: Added to the scores, (count or 1, 1, queries, keys); None: every query attends to every key.
    mask: Tensor | None
    #: Whether query i attends to keys 0 to i; `mask` is then None.
    causal: bool = False

    def __call__(self, q: Tensor, keys: Tensor, values: Tensor, scale: float) -> Tensor:
        """q (T, H, D), keys and values (G, P, D) -> (count * queries, H * D)."""
        _, heads, dim = q.shape
        groups, places, _ = keys.shape
        rows = q[self.first : self.first + self.count * self.queries]
        rows = rows.view(self.count, self.queries, heads, dim).transpose(1, 2)
        shape = (self.count, groups, self.keys, dim)
        stride = (self.gap * dim, places * dim, dim, 1)
        y = F.scaled_dot_product_attention(
            rows,
            keys.as_strided(shape, stride, keys.storage_offset() + self.start * dim),
            values.as_strided(shape, stride, values.storage_offset() + self.start * dim),
            attn_mask=self.mask,
            is_causal=self.causal,
            scale=scale,
            enable_gqa=groups != heads,
        )
        return y.transpose(1, 2).reshape(self.count * self.queries, heads * dim)


def attend(q: Tensor, keys: Tensor, values: Tensor, calls: Rows[AttentionCall], scale: float) -> Tensor:
    """Run the calls, which cover the batch in order: q (T, H, D), keys and values (G, P, D) -> (T, H * D)."""
    parts = [call(q, keys, values, scale) for call in calls]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def plan_calls(
    chunks: Rows[Chunk], windows: frozenset[int], call_cost_places: int, like: Tensor
) -> dict[int, list[Call]]:
    """The calls for `chunks` for each window: a position attends to itself and to `window` positions before it.

    Chunks of one position come first, in the order of their places. `like` has the dtype and the device of the
    masks.
    """
    longest = max(chunk.end for chunk in chunks)
    by_reach: dict[int, list[Call]] = {}
    for reach in {min(window + 1, longest) for window in windows}:
        singles = [chunk for chunk in chunks if chunk.length == 1]
        calls = _single_calls(singles, reach, call_cost_places, like)
        first = len(singles)
        for chunk in chunks[first:]:
            calls.append(_chunk_call(chunk, first, reach, like))
            first += chunk.length
        by_reach[reach] = calls
    return {window: by_reach[min(window + 1, longest)] for window in windows}


def _single_calls(chunks: Rows[Chunk], reach: int, call_cost_places: int, like: Tensor) -> list[Call]:
    """Calls for chunks of one position, which attends to at most `reach` keys."""
    spans = []
    for chunk in chunks:
        hidden = max(0, chunk.end - reach)
        extent = chunk.extent
        spans.append(Span(extent.start + hidden, chunk.end - hidden, extent.size - hidden))
    groups = group_rows(spans, call_cost_places)
    if all(group.even for group in groups):
        masks = None
    else:
        lengths = torch.tensor([span.length for span in spans], device=like.device)
        places = torch.arange(max(span.length for span in spans), device=like.device)
        masks = like.new_zeros(1).masked_fill(places >= lengths[:, None], -torch.inf)[:, None, None]
    return [
        Call(
            group.first,
            group.count,
            1,
            group.start,
            group.gap,
            group.longest,
            None
            if group.even or masks is None
            else masks[group.first : group.first + group.count, ..., : group.longest],
        )
        for group in groups
    ]


def _chunk_call(chunk: Chunk, first: int, reach: int, like: Tensor) -> Call:
    """The call for a chunk of several positions, each of which attends to at most `reach` keys."""
    hidden = max(0, chunk.start + 1 - reach)
    keys = chunk.end - hidden
    place = chunk.extent.start + hidden
    if chunk.start == 0 and reach >= chunk.end:
        return Call(first, 1, chunk.length, place, 0, keys, None, causal=True)
    distance = torch.arange(chunk.start, chunk.end, device=like.device)[:, None] - torch.arange(
        hidden, chunk.end, device=like.device
    )
    mask = like.new_zeros(1).masked_fill((distance < 0) | (distance >= reach), -torch.inf)
    return Call(first, 1, chunk.length, place, 0, keys, mask[None, None])
