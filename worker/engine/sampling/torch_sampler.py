"""Sampling on torch.

Temperature 0 takes the largest logit. Above it, temperature, min-p, top-k and top-p are applied in this order. Then one
uniform number for each token is looked up in the cumulative distribution, in float64 and in the order of ids. Of equal
logits the lower id wins, so the result depends only on the logits, the request and the index of the token.
`native_sampler` draws the same ids on a CPU.

Shapes: R rows, V ids.
"""

from __future__ import annotations

from collections.abc import Sequence as Rows
from dataclasses import dataclass

import torch
from torch import Tensor

from worker.engine.request import SequenceRequest
from worker.engine.sampling.forbidden_ids import ForbiddenIds
from worker.engine.sequence import Sequence
from worker.engine.transfer import send
from worker.engine.vocabulary import NO_TOKEN, Vocabulary


def keep_top_k(scores: Tensor, k: Tensor, largest_k: int) -> Tensor:
    """Mask (R, V) of exactly `k` (R,) highest scores in each row, 1 <= k <= largest_k <= V."""
    highest = scores.topk(largest_k).values
    threshold = highest.gather(1, k[:, None] - 1)
    above = scores > threshold
    tied = scores == threshold
    left = k[:, None] - above.sum(1, keepdim=True)
    return above | (tied & (tied.cumsum(1) <= left))


def keep_top_p(weights: Tensor, p: Tensor) -> Tensor:
    """Mask (R, V) of the fewest ids whose share of the row's weight reaches `p` (R,); at least one."""
    ordered, ids = weights.sort(dim=1, descending=True, stable=True)
    reached = ordered.cumsum(1)
    keep = torch.ones_like(ordered, dtype=torch.bool)
    keep[:, 1:] = reached[:, :-1] < p[:, None] * reached[:, -1:]
    return torch.zeros_like(keep).scatter_(1, ids, keep)


def invert_cdf(weights: Tensor, uniform: Tensor) -> Tensor:
    """The first id (R,) at which the running sum of `weights` (R, V) exceeds the share `uniform` (R,) of the total."""
    reached = weights.cumsum(1)
    total = reached[:, -1]
    # The multiplication may round up to the total itself, which no sum exceeds.
    target = torch.minimum(uniform * total, total.nextafter(torch.zeros_like(total)))
    return (reached <= target[:, None]).sum(1)


@dataclass(frozen=True, slots=True)
class _Drawing:
    """The rows above temperature 0 and the sampling fields of their requests, as tensors."""

    #: Rows of the batch.
    rows: list[int]
    index: Tensor
    #: One for each of these rows.
    temperature: Tensor
    #: Which of these rows have a min-p, and its values; then the same for top-k and top-p.
    with_min: Tensor | None
    min_p: Tensor
    with_k: Tensor | None
    k: Tensor
    largest_k: int
    with_p: Tensor | None
    p: Tensor


class TorchSampler:
    """A `Sampler` on torch. Tensors that depend only on the requests are kept while the batch stays the same."""

    def __init__(self, vocabulary: Vocabulary, device: torch.device) -> None:
        """`device` must support float64. Logits are copied there."""
        self._device = device
        self._size = vocabulary.size
        self._forbidden = ForbiddenIds(vocabulary, torch.bool, device)
        self._batch: list[Sequence] = []
        self._mask: Tensor | None = None
        self._drawing: _Drawing | None = None

    def check(self, request: SequenceRequest) -> None:
        """Raise ValueError if there is no id that `request` may sample."""
        self._forbidden.check(request)

    def draw(self, logits: Tensor, batch: Rows[Sequence]) -> Tensor:
        """The next token of each row of `logits` (R, V): ids (R,) on the device, NO_TOKEN where a row is not finite.

        While the batch stays the same, the host sends only the uniform numbers, and does not wait for the device.
        """
        if self._batch != batch:
            self._prepare(list(batch))
        logits = logits.to(self._device)
        finite = logits.sum(1).isfinite()
        if self._mask is not None:
            logits = logits.masked_fill(self._mask, -torch.inf)
        ids = logits.argmax(1)  # the first of equal logits
        if self._drawing is not None:
            uniform = [batch[row].uniforms[len(batch[row].tokens)] for row in self._drawing.rows]
            ids[self._drawing.index] = self._draw(logits[self._drawing.index], self._drawing, uniform)
        return torch.where(finite, ids, NO_TOKEN)

    def _draw(self, logits: Tensor, drawing: _Drawing, uniform: list[float]) -> Tensor:
        scores = logits.double()
        scores = (scores - scores.amax(1, keepdim=True)) / drawing.temperature
        weights = scores.exp()
        if drawing.with_min is not None:
            # The largest weight of a row is 1.
            weights[drawing.with_min] *= weights[drawing.with_min] >= drawing.min_p
        if drawing.with_k is not None:
            weights[drawing.with_k] *= keep_top_k(scores[drawing.with_k], drawing.k, drawing.largest_k)
        if drawing.with_p is not None:
            weights[drawing.with_p] *= keep_top_p(weights[drawing.with_p], drawing.p)
        ids = invert_cdf(weights, send(uniform, self._device))
        return ids.clamp_(max=self._size - 1)  # only rows that are not finite exceed it

    def _prepare(self, batch: list[Sequence]) -> None:
        requests = [sequence.request for sequence in batch]
        masks = [self._forbidden.of(request) for request in requests]
        if all(mask is masks[0] for mask in masks):
            self._mask = masks[0]
        else:
            all_allowed = torch.zeros(self._size, dtype=torch.bool, device=self._device)
            self._mask = torch.stack([all_allowed if mask is None else mask for mask in masks])
        rows = [row for row, request in enumerate(requests) if request.sampling.temperature > 0]
        self._drawing = self._drawing_of([requests[row] for row in rows], rows) if rows else None
        self._batch = batch

    def _drawing_of(self, requests: list[SequenceRequest], rows: list[int]) -> _Drawing:
        def floats(values: list[float]) -> Tensor:
            return torch.tensor(values, dtype=torch.float64, device=self._device)

        def integers(values: list[int]) -> Tensor:
            return torch.tensor(values, device=self._device)

        limits = [request.sampling.top_k or self._size for request in requests]
        with_k = [row for row, k in enumerate(limits) if k < self._size]
        shares = [1.0 if request.sampling.top_p is None else request.sampling.top_p for request in requests]
        with_p = [row for row, p in enumerate(shares) if p < 1]
        least = [request.sampling.min_p or 0.0 for request in requests]
        with_min = [row for row, share in enumerate(least) if share > 0]
        return _Drawing(
            rows=rows,
            index=integers(rows),
            temperature=floats([request.sampling.temperature for request in requests])[:, None],
            with_min=integers(with_min) if with_min else None,
            min_p=floats([least[row] for row in with_min])[:, None],
            with_k=integers(with_k) if with_k else None,
            k=integers([limits[row] for row in with_k]),
            largest_k=max((limits[row] for row in with_k), default=0),
            with_p=integers(with_p) if with_p else None,
            p=floats([shares[row] for row in with_p]),
        )
