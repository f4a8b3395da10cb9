"""Checks of a request before it enters the engine."""

from __future__ import annotations

import math

from worker.engine.architecture.config import ModelConfig
from worker.engine.philox import CHOICE_BITS, SEED_BITS
from worker.engine.request import SequenceRequest


def check_request(request: SequenceRequest, config: ModelConfig) -> None:
    """Raise ValueError, with a message for the person who sent it, if a model of this shape cannot run `request`."""
    sampling = request.sampling
    if not request.prompt:
        raise ValueError("the prompt has no tokens")
    if not all(0 <= token < config.vocab_size for token in (*request.prompt, *request.generated)):
        raise ValueError(f"token ids must be between 0 and {config.vocab_size - 1}")
    if sampling.max_tokens < 1:
        raise ValueError("max_tokens must be at least 1")
    if len(request.prompt) + sampling.max_tokens > config.sequence_len:
        raise ValueError(
            f"{len(request.prompt)} prompt tokens plus max_tokens {sampling.max_tokens} exceed the context of "
            f"{config.sequence_len} tokens"
        )
    if len(request.generated) > sampling.max_tokens:
        raise ValueError(
            f"{len(request.generated)} tokens were already generated, more than max_tokens {sampling.max_tokens}"
        )
    if sampling.seed is not None and not 0 <= sampling.seed < 1 << SEED_BITS:
        raise ValueError(f"the seed must be between 0 and 2^{SEED_BITS} - 1")
    if not 0 <= request.choice < 1 << CHOICE_BITS:
        raise ValueError(f"the choice must be between 0 and 2^{CHOICE_BITS} - 1")
    if not 0 <= sampling.temperature < float("inf"):
        raise ValueError("the temperature must be a finite number, 0 or greater")
    if sampling.seed is None and sampling.temperature > 0:
        raise ValueError("a temperature above 0 needs a seed")
    if sampling.top_k is not None and sampling.top_k < 1:
        raise ValueError("top_k must be at least 1")
    if sampling.top_p is not None and not 0 <= sampling.top_p <= 1:
        raise ValueError("top_p must be between 0 and 1")
    if sampling.min_p is not None and not 0 <= sampling.min_p <= 1:
        raise ValueError("min_p must be between 0 and 1")
    for name in ("presence_penalty", "frequency_penalty"):
        if not math.isfinite(getattr(sampling, name) or 0):
            raise ValueError(f"{name} must be a finite number")
    if sampling.repetition_penalty is not None and not 0 < sampling.repetition_penalty < math.inf:
        raise ValueError("repetition_penalty must be a finite number above 0")
    for token, bias in sampling.logit_bias:
        if not 0 <= token < config.vocab_size:
            raise ValueError(f"logit_bias names the id {token}, and ids are between 0 and {config.vocab_size - 1}")
        if not math.isfinite(bias):
            raise ValueError(f"the logit_bias of the id {token} must be a finite number")
    for token in sampling.stop_token_ids:
        if not 0 <= token < config.vocab_size:
            raise ValueError(f"stop_token_ids has the id {token}, and ids are between 0 and {config.vocab_size - 1}")
    for name in ("min_tokens", "logprobs", "prompt_logprobs"):
        if (getattr(sampling, name) or 0) < 0:
            raise ValueError(f"{name} must be at least 0")
