"""The interface between the engine and a sampler."""

from __future__ import annotations

from collections.abc import Sequence as Rows
from typing import Protocol

from torch import Tensor

from worker.engine.request import SequenceRequest
from worker.engine.sequence import Sequence


class Sampler(Protocol):
    """Draws the next token of each row of a batch."""

    def check(self, request: SequenceRequest) -> None:
        """Raise ValueError if the vocabulary has no id that `request` may sample."""
        ...

    def draw(self, logits: Tensor, batch: Rows[Sequence]) -> Tensor:
        """The next token of each row of `logits` (R, V): ids (R,), NO_TOKEN where a row's logits are not finite.

        Row i belongs to `batch[i]`. The ids are valid until the next call.
        """
        ...
