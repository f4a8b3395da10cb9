"""The rules of sampling in plain Python: a slow reference for `worker.engine.sampling`."""

from __future__ import annotations

import math
from collections.abc import Sequence as Rows
from dataclasses import dataclass

from worker.engine.philox import uniforms
from worker.engine.request import SequenceRequest
from worker.engine.vocabulary import Vocabulary

#: Candidates closer than this are a near tie: as a difference of logits, and as a share of the total probability.
LOGIT_TIE = 1e-3
SHARE_TIE = 1e-4


@dataclass(frozen=True, slots=True)
class Draw:
    """A drawn token, and how small a change would have drawn another one."""

    token: int
    #: Difference between the logits of the last id that was kept (or chosen) and of the next id; infinite if there is
    #: no next id.
    logit_margin: float
    #: Distance of the uniform number, or of top-p, from the nearest step of the cumulative distribution.
    share_margin: float

    @property
    def near_tie(self) -> bool:
        """Whether the rounding of logits may change the drawn id."""
        return self.logit_margin < LOGIT_TIE or self.share_margin < SHARE_TIE


def allowed_ids(request: SequenceRequest, count: int, vocabulary: Vocabulary) -> list[int]:
    """The ids that may follow `count` generated tokens, in rising order."""
    sampling = request.sampling
    may = vocabulary.candidates(every_id=request.every_id, ignore_eos=sampling.ignore_eos)
    ends = set(sampling.stop_token_ids) | (set() if sampling.ignore_eos else vocabulary.stop_ids)
    extra = set(sampling.stop_token_ids) | (vocabulary.tool_ids if request.tools else set())
    return [
        token
        for token in range(vocabulary.size)
        if (may[token] or token in extra) and (count >= (sampling.min_tokens or 0) or token not in ends)
    ]


def changed_logits(logits: Rows[float], request: SequenceRequest, generated: Rows[int]) -> list[float]:
    """The logits after the tokens `generated`, with the penalties and biases of the request."""
    sampling = request.sampling
    changed = list(logits)
    for token in {*request.prompt, *generated}:
        penalty = sampling.repetition_penalty or 1
        changed[token] = changed[token] / penalty if changed[token] > 0 else changed[token] * penalty
    for token in set(generated):
        changed[token] -= (sampling.frequency_penalty or 0) * generated.count(token)
        changed[token] -= sampling.presence_penalty or 0
    for token, bias in sampling.logit_bias:
        changed[token] += bias
    return changed


def slow_draw(raw_logits: Rows[float], request: SequenceRequest, generated: Rows[int], vocabulary: Vocabulary) -> Draw:
    """Draw the token that follows the tokens `generated`; the model gave `raw_logits` for it."""
    logits = changed_logits(raw_logits, request, generated)
    sampling = request.sampling
    ids = sorted(allowed_ids(request, len(generated), vocabulary), key=lambda token: (-logits[token], token))
    highest = logits[ids[0]]
    if sampling.temperature == 0:
        return Draw(ids[0], highest - logits[ids[1]] if len(ids) > 1 else math.inf, math.inf)
    logit_margin = share_margin = math.inf
    if sampling.min_p:
        least = highest + sampling.temperature * math.log(sampling.min_p)
        logit_margin = min(abs(logits[token] - least) for token in ids)
        ids = [token for token in ids if logits[token] >= least]
    if sampling.top_k is not None and sampling.top_k < len(ids):
        logit_margin = min(logit_margin, logits[ids[sampling.top_k - 1]] - logits[ids[sampling.top_k]])
        ids = ids[: sampling.top_k]
    weight = {token: math.exp((logits[token] - highest) / sampling.temperature) for token in ids}
    if sampling.top_p is not None and sampling.top_p < 1:
        total = math.fsum(weight.values())
        kept: list[int] = []
        share = 0.0
        for token in ids:
            if kept and share >= sampling.top_p:
                break
            kept.append(token)
            share += weight[token] / total
            share_margin = min(share_margin, abs(share - sampling.top_p))
        if len(kept) < len(ids):
            logit_margin = min(logit_margin, logits[kept[-1]] - logits[ids[len(kept)]])
        ids = kept
    total = math.fsum(weight[token] for token in ids)
    target = uniforms(sampling.seed or 0, len(generated), 1, request.choice)[0]
    chosen = None
    share = 0.0
    ids.sort()
    for token in ids:
        share += weight[token] / total
        if token != ids[-1]:
            share_margin = min(share_margin, abs(share - target))
        if chosen is None and share > target:
            chosen = token
    return Draw(ids[-1] if chosen is None else chosen, logit_margin, share_margin)
