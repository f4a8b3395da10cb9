"""Shortcuts for building requests. Sampling fields are keywords; the default is greedy."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tasks.generation import Generation
from tasks.sampling_params import SAMPLING_FIELDS, SamplingParams
from worker.engine.request import SequenceRequest

_NAMES = frozenset(one.name for one in SAMPLING_FIELDS)


def make_generation(prompt: str, **sampling: Any) -> Generation:
    """A request as the job record holds it."""
    return Generation(prompt=prompt, sampling=SamplingParams(**{"temperature": 0.0, "seed": 0, **sampling}))


def sequence_request(**fields: Any) -> SequenceRequest:
    """A request to the engine. Accepts the sampling fields and those of SequenceRequest."""
    sampling = {name: value for name, value in fields.items() if name in _NAMES}
    rest = {name: value for name, value in fields.items() if name not in _NAMES}
    return SequenceRequest(sampling=SamplingParams(**{"temperature": 0.0, "seed": 0, **sampling}), **rest)


def changed(request: SequenceRequest, **fields: Any) -> SequenceRequest:
    """A copy of `request` with other values of sampling fields or of its own."""
    sampling = {name: value for name, value in fields.items() if name in _NAMES}
    rest = {name: value for name, value in fields.items() if name not in _NAMES}
    return replace(request, sampling=replace(request.sampling, **sampling), **rest)
