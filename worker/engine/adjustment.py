"""Penalties, biases and `min_tokens`: what a request changes in the logits before a sampler draws from them.

For each id that it changes, in this order and in fp32:

1. An id that the prompt or the answer contains has its logit divided by the repetition penalty if it is positive, and
   multiplied if it is negative.
2. The frequency penalty is subtracted once for each time that the answer contains the id, and the presence penalty if
   the answer contains it at all.
3. The bias is added. It comes after the repetition penalty, which would else shrink a bias of 100 to one that no longer
   forces an id. (Logits are at most as large as the model's softcap, which is 15 or 20.)
4. While the answer has fewer than `min_tokens` tokens, an id that would end it is out of reach.

Answers count with the tokens of earlier attempts. Only the ids that change are touched: those of the prompt (for the
repetition penalty), of the answer, and those with a bias.
"""

from __future__ import annotations

from array import array
from collections.abc import Collection, Sequence

import numpy as np
from numpy.typing import NDArray

from tasks.sampling_params import SamplingParams
from worker.engine.request import SequenceRequest

#: Subtracted from the logits of ids that may not be drawn yet. It is finite, because a row must be.
_OUT_OF_REACH = 1e30


class Adjustment:
    """The changes of one sequence's logits. It follows the tokens of the sequence."""

    def __init__(self, request: SequenceRequest, stop_ids: Collection[int]) -> None:
        """`stop_ids`: the ids that end the text, which `min_tokens` puts out of reach."""
        sampling = request.sampling
        self._repetition = sampling.repetition_penalty or 1.0
        self._presence = sampling.presence_penalty or 0.0
        self._frequency = sampling.frequency_penalty or 0.0
        self._counts_tokens = _has_penalty(sampling)
        self._min_tokens = sampling.min_tokens or 0
        self._biases = dict(sampling.logit_bias)
        self._stop_ids = tuple(stop_ids) if self._min_tokens else ()
        #: Each id that may change, with its index in the arrays.
        self._index: dict[int, int] = {}
        self._ids = array("q")
        #: The divisor of each id's logit, and what is subtracted afterwards.
        self._divisors = array("f")
        self._minus = array("f")
        #: How often the answer contains an id, and how many of its tokens have been counted.
        self._counts: dict[int, int] = {}
        self._counted = 0
        for token in (*self._biases, *self._stop_ids):
            self._set(token)
        if self._repetition != 1:
            for token in set(request.prompt):
                self._divisors[self._set(token)] = self._repetition

    @staticmethod
    def of(request: SequenceRequest, stop_ids: Collection[int]) -> Adjustment | None:
        """The adjustment that a request asks for; None if it asks for none."""
        sampling = request.sampling
        asks = _has_penalty(sampling) or sampling.logit_bias or (sampling.min_tokens and stop_ids)
        return Adjustment(request, stop_ids) if asks else None

    def follow(self, tokens: Sequence[int]) -> None:
        """Take note of the answer's `tokens` so far, which grow from call to call."""
        if self._counts_tokens:
            for token in tokens[self._counted :]:
                self._counts[token] = self._counts.get(token, 0) + 1
                self._divisors[self._set(token)] = self._repetition
        self._counted = len(tokens)
        if self._stop_ids and self._counted >= self._min_tokens:
            released, self._stop_ids = self._stop_ids, ()
            for token in released:
                self._set(token)

    def values(self) -> tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.float32]]:
        """Ids, their divisors, and what is subtracted from their logits afterwards. Valid until the next `follow`."""
        return (
            np.asarray(self._ids, dtype=np.int64),
            np.asarray(self._divisors, dtype=np.float32),
            np.asarray(self._minus, dtype=np.float32),
        )

    def _set(self, token: int) -> int:
        """Compute what is subtracted from the logit of `token`. Returns its index."""
        index = self._index.setdefault(token, len(self._ids))
        if index == len(self._ids):
            self._ids.append(token)
            self._divisors.append(1.0)
            self._minus.append(0.0)
        count = self._counts.get(token, 0)
        penalty = self._frequency * count + (self._presence if count else 0.0)
        self._minus[index] = _OUT_OF_REACH if token in self._stop_ids else penalty - self._biases.get(token, 0.0)
        return index


def _has_penalty(sampling: SamplingParams) -> bool:
    neutral_repetition = sampling.repetition_penalty in (None, 1)
    return bool(sampling.presence_penalty or sampling.frequency_penalty) or not neutral_repetition
