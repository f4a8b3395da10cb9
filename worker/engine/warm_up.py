"""Warm-up: the first step allocates memory, starts threads and loads code. Do that before the first request."""

from __future__ import annotations

from dataclasses import replace

from tasks.sampling_params import SamplingParams
from worker.engine.engine import Engine
from worker.engine.request import SequenceRequest

#: Tokens of each text. The second one is decoded in a batch of two rows, like most tokens later.
_TOKENS = 2


def warm_up(engine: Engine) -> None:
    """Decode two short texts, one greedy and one with all that sampling can do, and discard them."""
    prompt, max_tokens = (0,), min(_TOKENS, engine.model.config.sequence_len - 1)
    if max_tokens < 1:
        return
    greedy = SamplingParams(max_tokens=max_tokens, temperature=0.0, seed=0)
    drawn = replace(
        greedy,
        temperature=1.0,
        min_p=0.1,
        top_k=2,
        top_p=0.9,
        repetition_penalty=1.1,
        logit_bias=((0, 1.0),),
        logprobs=1,
    )
    for name, sampling in (("greedy", greedy), ("drawn", drawn)):
        engine.add_request(SequenceRequest(id=f"warm-up {name}", prompt=prompt, sampling=sampling, every_id=True))
    while engine.has_work:
        engine.step()
