"""Reuse of the batch of one decoding step for the next one.

While the same rows decode, the next batch is the last one with one new token per row. Its tensors are then updated on
the device instead of being built on the host and sent again.
"""

from __future__ import annotations

from collections.abc import Sequence as Rows

import torch
from torch import Tensor

from worker.engine.batch import Batch
from worker.engine.scheduler import Chunk, Scheduler


class BatchReuse:
    """Provides the batch of each step, reused or new.

    A step calls `plan` and `take`, then `feed` when its tokens are drawn, then `keep` when they are added to their
    sequences. If the step fails before `keep`, the next batch is a new one.
    """

    def __init__(self, scheduler: Scheduler, device: torch.device) -> None:
        self._scheduler = scheduler
        self._device = device
        #: The batch of the next step, valid while the scheduler's rows have `_revision`; None: build a new one.
        self._batch: Batch | None = None
        self._revision = 0
        #: Whether the tensors of the batch that was taken last already hold the next step.
        self._fed = False

    def plan(self) -> Rows[Chunk]:
        """The chunks of the next step; empty if there is nothing to run."""
        if self._batch is not None and self._revision == self._scheduler.revision:
            return self._batch.chunks
        self._batch = None
        return self._scheduler.plan()

    def take(self, chunks: Rows[Chunk]) -> Batch:
        """The batch of `chunks`: the kept one if `plan` returned its chunks, else a new one."""
        batch, self._batch, self._fed = self._batch, None, False
        return batch if batch is not None and batch.chunks is chunks else Batch.of(chunks, self._device)

    def feed(self, batch: Batch, ids: Tensor) -> None:
        """Change the tensors of `batch` to the next step, in which each row decodes its id of `ids` (T,).

        Everything happens on the device: the ids do not go through the host. Nothing changes if the next step cannot
        reuse the batch.
        """
        self._fed = batch.decodes_only and len(batch.chunks) == len(self._scheduler.running)
        if self._fed:
            batch.columns[1].copy_(batch.columns[0])
            batch.columns[0].copy_(ids)
            batch.columns[2:].add_(1)
            self._revision = self._scheduler.revision

    def keep(self, batch: Batch) -> None:
        """Keep `batch` for the next step, unless it was not fed or one of its rows has ended."""
        if self._fed and self._revision == self._scheduler.revision:
            batch.last_position += 1
            for chunk in batch.chunks:
                chunk.start += 1
            self._batch = batch
