"""Which ids a request may not sample, as masks."""

from __future__ import annotations

import torch
from torch import Tensor

from worker.engine.request import SequenceRequest
from worker.engine.vocabulary import Vocabulary


class ForbiddenIds:
    """A mask of the vocabulary for every kind of request."""

    def __init__(self, vocabulary: Vocabulary, dtype: torch.dtype, device: torch.device) -> None:
        """Masks are of `dtype`, bool or an integer, with every bit set where an id is forbidden."""
        self._masks: dict[tuple[bool, bool], Tensor | None] = {}
        #: Kinds of requests for which no id is left.
        self._hopeless: set[tuple[bool, bool]] = set()
        for every_id in (False, True):
            for ignore_eos in (False, True):
                allowed = vocabulary.candidates(every_id=every_id, ignore_eos=ignore_eos)
                mask = torch.tensor([not ok for ok in allowed], device=device)
                if dtype is not torch.bool:
                    mask = -mask.to(dtype)
                self._masks[every_id, ignore_eos] = None if all(allowed) else mask
                if not any(allowed):
                    self._hopeless.add((every_id, ignore_eos))

    def check(self, request: SequenceRequest) -> None:
        """ValueError if there is no id that `request` may sample."""
        if (request.every_id, request.sampling.ignore_eos) in self._hopeless:
            raise ValueError("the vocabulary has no id with text: ask for every id (`every_id`)")

    def of(self, request: SequenceRequest) -> Tensor | None:
        """The ids (V) that `request` may not sample; None where it may sample all."""
        return self._masks[request.every_id, request.sampling.ignore_eos]
