"""Masks of the ids that a request may not sample."""

from __future__ import annotations

from collections import OrderedDict
from typing import NamedTuple

import torch
from torch import Tensor

from worker.engine.request import SequenceRequest
from worker.engine.vocabulary import Vocabulary

#: Most masks that are kept. A mask has one element for each id.
_MAX_MASKS = 64


class _Choice(NamedTuple):
    """The fields of a request that decide which ids it may sample."""

    every_id: bool
    ignore_eos: bool
    tools: bool
    stop_token_ids: frozenset[int]

    @classmethod
    def of(cls, request: SequenceRequest) -> _Choice:
        if request.every_id:
            return cls(every_id=True, ignore_eos=False, tools=False, stop_token_ids=frozenset())
        sampling = request.sampling
        return cls(
            every_id=False,
            ignore_eos=sampling.ignore_eos,
            tools=request.tools,
            stop_token_ids=frozenset(sampling.stop_token_ids),
        )


class ForbiddenIds:
    """One mask of the vocabulary for each set of ids that a request may sample. Those that were used last are kept."""

    def __init__(self, vocabulary: Vocabulary, dtype: torch.dtype, device: torch.device) -> None:
        """Masks have `dtype`, bool or an integer type. All bits of an element are set if its id is forbidden."""
        self._tool_ids = vocabulary.tool_ids
        self._dtype = dtype
        self._device = device
        self._masks: OrderedDict[_Choice, Tensor | None] = OrderedDict()
        #: Ids that are neither text nor, unless `ignore_eos`, stop ids: one mask (V) for each value of `ignore_eos`.
        self._without_text = {
            ignore_eos: ~torch.tensor(vocabulary.candidates(every_id=False, ignore_eos=ignore_eos))
            for ignore_eos in (False, True)
        }
        #: Values of `ignore_eos` with which no id is left to sample.
        self._without_ids = {value for value, forbidden in self._without_text.items() if forbidden.all()}

    def check(self, request: SequenceRequest) -> None:
        """Raise ValueError if there is no id that `request` may sample."""
        if not request.every_id and request.sampling.ignore_eos in self._without_ids:
            raise ValueError("the vocabulary has no id with text: ask for every id (`every_id`)")

    def of(self, request: SequenceRequest) -> Tensor | None:
        """The mask (V) of the ids that `request` may not sample; None if it may sample all."""
        choice = _Choice.of(request)
        if choice in self._masks:
            self._masks.move_to_end(choice)
        else:
            self._masks[choice] = self._mask(choice)
            if len(self._masks) > _MAX_MASKS:
                self._masks.popitem(last=False)
        return self._masks[choice]

    def _mask(self, choice: _Choice) -> Tensor | None:
        if choice.every_id:
            return None
        forbidden = self._without_text[choice.ignore_eos].clone()
        extra = choice.stop_token_ids | (self._tool_ids if choice.tools else frozenset())
        forbidden[list(extra)] = False
        if not forbidden.any():
            return None
        return (forbidden if self._dtype is torch.bool else -forbidden.to(self._dtype)).to(self._device)
