"""Log-probabilities of tokens, as the packed records of `tasks.logprobs`.

They are computed from the logits of the model, before penalties, biases, masks and temperature. The alternatives of a
token are ordered by their logits; of equal ones the lower id comes first, as in a greedy draw.
"""

from __future__ import annotations

import math
import struct

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from worker.engine.batch import ScoredPrompt

#: What stands for an alternative that the vocabulary does not have: see `tasks.logprobs`.
_NO_PAIR = struct.pack("<if", -1, -math.inf)
#: Rows that are scored at a time: this bounds the memory for their copies.
_ROWS = 32
#: Number of ids in a block. The search first compares the highest logits of the blocks.
_BLOCK = 64


class ScoredRows:
    """Log-probabilities of each id after some rows of logits."""

    def __init__(self, logits: Tensor, alternatives: int) -> None:
        """Reads `logits` (n, V), fp32, which may change later. Finds `alternatives` ids of each row, V at most."""
        if logits.device.type == "mps":
            logits = logits.cpu()  # where all number formats and operations that follow exist
        self._logprobs = logits.log_softmax(1)
        count = min(alternatives, logits.shape[1])
        self._top = torch.cat([highest(rows, count) for rows in torch.split(logits, _ROWS)])

    def pairs(self, tokens: Tensor) -> NDArray[np.int32]:
        """Pairs (n, 1 + k, 2) of an id and the bits of its log-probability: those of `tokens` (n,), then the k most
        likely ones. A negative token gets any log-probability."""
        ids = torch.cat((tokens.to(self._logprobs.device).clamp(min=0)[:, None], self._top), dim=1)
        bits = self._logprobs.gather(1, ids).view(torch.int32)
        pairs: NDArray[np.int32] = torch.stack((ids.int(), bits), dim=2).cpu().numpy()
        return pairs


def highest(logits: Tensor, count: int) -> Tensor:
    """The ids (n, count) with the highest logits (n, V), fp32, the highest first; of equal ones the lower id first."""
    rows, size = logits.shape
    if count * _BLOCK >= size:
        return _highest(logits, torch.arange(size, device=logits.device).expand(rows, size), count)
    # An id that is among the highest is in one of the blocks with the highest maxima: each other one of them has an id
    # that comes before it.
    blocks = torch.nn.functional.pad(logits, (0, -size % _BLOCK), value=-math.inf).view(rows, -1, _BLOCK)
    maxima = blocks.amax(2)
    numbers = torch.arange(maxima.shape[1], device=logits.device).expand_as(maxima)
    chosen = _highest(maxima, numbers, count)
    found = blocks.gather(1, chosen[:, :, None].expand(-1, -1, _BLOCK))
    ids = chosen[:, :, None] * _BLOCK + torch.arange(_BLOCK, device=logits.device)
    return _highest(found.flatten(1), ids.flatten(1), count)


def _highest(values: Tensor, ids: Tensor, count: int) -> Tensor:
    """The `ids` (n, count) of the highest `values` (n, m), fp32, in the order of `highest`."""
    bits = (values + 0.0).view(torch.int32)  # -0 becomes 0
    rising = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).long()
    # No two keys are equal, so the result does not depend on how they are sorted.
    return ids.gather(1, ((rising << 32) - ids).topk(count).indices)


def record(pairs: NDArray[np.int32], alternatives: int) -> bytes:
    """The record of one token from its `pairs` (1 + k, 2): `alternatives` of the k most likely ids are kept."""
    kept = pairs[: 1 + alternatives]
    return kept.astype("<i4").tobytes() + _NO_PAIR * (1 + alternatives - len(kept))


def prompt_records(logits: Tensor, part: ScoredPrompt) -> bytes:
    """The records of a part of a prompt, whose rows are among `logits` (R, V)."""
    alternatives = part.sequence.request.sampling.prompt_logprobs or 0
    packed = []
    for first in range(0, len(part.tokens), _ROWS):
        tokens = torch.tensor(part.tokens[first : first + _ROWS])
        row = part.first_row + first
        pairs = ScoredRows(logits[row : row + len(tokens)], alternatives).pairs(tokens)
        packed += [record(one, alternatives) for one in pairs]
    return b"".join(packed)
