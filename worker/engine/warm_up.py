"""The first step takes memory, starts threads and loads code; the warm-up lets it do so before anybody waits for it."""

from __future__ import annotations

from dataclasses import replace

from tasks.sampling_params import SamplingParams
from worker.engine.engine import Engine
from worker.engine.request import SequenceRequest

#: The second token is decoded beside another row, as most are.
_TOKENS = 2


def warm_up(engine: Engine) -> None:
    """Decode two short texts, one greedy and one with every way of sampling, and forget them."""
    prompt, most = (0,), min(_TOKENS, engine.model.config.sequence_len - 1)
    if most < 1:
        return
    every_way = SamplingParams(max_tokens=most, temperature=1.0, top_k=2, top_p=0.9, seed=0)
    for name, sampling in (("greedy", replace(every_way, temperature=0.0)), ("drawn", every_way)):
        engine.add_request(SequenceRequest(id=f"warm-up {name}", prompt=prompt, sampling=sampling, every_id=True))
    while engine.has_work:
        engine.step()
