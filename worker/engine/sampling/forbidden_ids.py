"""Masks of the ids that a request may not sample."""

from __future__ import annotations

import torch
from torch import Tensor

from worker.engine.request import SequenceRequest
from worker.engine.vocabulary import Vocabulary


class ForbiddenIds:
    """One mask of the vocabulary for each combination of `every_id` and `ignore_eos`."""

    def __init__(self, vocabulary: Vocabulary, dtype: torch.dtype, device: torch.device) -> None:
        """Masks have `dtype`, bool or an integer type. All bits of an element are set if its id is forbidden."""
        self._masks: dict[tuple[bool, bool], Tensor | None] = {}
        #: Combinations that leave no id to sample.
        self._without_ids: set[tuple[bool, bool]] = set()
        for every_id in (False, True):
            for ignore_eos in (False, True):
                allowed = vocabulary.candidates(every_id=every_id, ignore_eos=ignore_eos)
                mask = torch.tensor([not ok for ok in allowed], device=device)
                if dtype is not torch.bool:
                    mask = -mask.to(dtype)
                self._masks[every_id, ignore_eos] = None if all(allowed) else mask
                if not any(allowed):
                    self._without_ids.add((every_id, ignore_eos))

    def check(self, request: SequenceRequest) -> None:
        """Raise ValueError if there is no id that `request` may sample."""
        if (request.every_id, request.sampling.ignore_eos) in self._without_ids:
            raise ValueError("the vocabulary has no id with text: ask for every id (`every_id`)")

    def of(self, request: SequenceRequest) -> Tensor | None:
        """The mask (V) of the ids that `request` may not sample; None if it may sample all."""
        return self._masks[request.every_id, request.sampling.ignore_eos]
