"""Applies what requests change in logits to the rows of a batch, in one go."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from worker.engine.sequence import Sequence


def adjust(logits: Tensor, rows: Iterable[tuple[int, Sequence]]) -> None:
    """Change `logits` (R, V) in place, in the given rows, as their sequences ask."""
    changes = []
    for row, sequence in rows:
        if sequence.adjustment is not None:
            sequence.adjustment.follow(sequence.tokens)
            ids, *numbers = sequence.adjustment.values()
            changes.append((np.full_like(ids, row), ids, *numbers))
    at_row, at_id, divisor, minus = (
        torch.from_numpy(np.concatenate(parts)).to(logits.device) for parts in zip(*changes, strict=True)
    )
    found = logits[at_row, at_id]
    logits[at_row, at_id] = torch.where(found > 0, found / divisor, found * divisor) - minus
