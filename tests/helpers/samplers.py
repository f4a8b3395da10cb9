"""Samplers on torch and on compiled kernels, and sequences that they draw for."""

from __future__ import annotations

import ctypes
from functools import cache

import torch
from torch import Tensor

from tests.helpers.kernels import kinds_by_width
from tests.helpers.requests import sequence_request
from worker.engine.adjustment import Adjustment
from worker.engine.native.library import library, load
from worker.engine.philox import UniformStream
from worker.engine.sampling.adjust import adjust
from worker.engine.sampling.native_sampler import NativeSampler
from worker.engine.sampling.sampler import Sampler
from worker.engine.sampling.torch_sampler import TorchSampler
from worker.engine.sequence import Sequence
from worker.engine.stop_criteria import StopCriteria
from worker.engine.vocabulary import NO_TOKEN, Vocabulary

#: Kinds of processor that this machine supports, one for each width of vectors; empty if kernels cannot be built.
KINDS = [] if library() is None else kinds_by_width()

#: Ids 0 to 5 have text, 6 is the stop id, and 7 begins the use of a tool.
TEXT = Vocabulary(8, tuple(bytes([97 + i]) if i < 6 else None for i in range(8)), frozenset({6}), frozenset({7}))


@cache
def kernels_for(kind: str) -> ctypes.CDLL:
    return load(kind)


def torch_sampler(vocabulary: Vocabulary) -> TorchSampler:
    return TorchSampler(vocabulary, torch.device("cpu"))


def native_sampler(kind: str, vocabulary: Vocabulary) -> NativeSampler:
    """A sampler that uses as many threads as torch has now."""
    return NativeSampler(vocabulary, kernels_for(kind), fixed_threads=True)


def drawn(sampler: Sampler, logits: Tensor, batch: list[Sequence]) -> list[int | None]:
    """The ids that a sampler draws, after the changes of logits that the requests ask for; None for rows that are not
    finite."""
    adjusted = [(row, one) for row, one in enumerate(batch) if one.adjustment is not None]
    if adjusted:
        logits = logits.clone()
        adjust(logits, adjusted)
    return [None if token == NO_TOKEN else token for token in sampler.draw(logits, batch).tolist()]


def sequence(vocabulary: Vocabulary = TEXT, generated: tuple[int, ...] = (), **fields: object) -> Sequence:
    """A sequence that has already generated `generated`, for a request with `fields`."""
    fields.setdefault("max_tokens", 100)
    fields.setdefault("prompt", (0,))
    request = sequence_request(id="s", generated=generated, **fields)  # type: ignore[arg-type]
    stop_criteria = StopCriteria(request, vocabulary)
    return Sequence(
        request=request,
        tokens=list(generated),
        stop_criteria=stop_criteria,
        uniforms=UniformStream(request.sampling.seed or 0, request.choice),
        adjustment=Adjustment.of(request, stop_criteria.stop_ids),
        deadline=None,
        reported=0,
    )
