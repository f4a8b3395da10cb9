"""OpenAI's sampling fields as those of the queue."""

from __future__ import annotations

import hashlib

from api.jobs.submission import DEFAULT_PRIORITY
from api.schemas.openai.request import OpenAiRequest
from tasks.sampling_params import MAX_TOKENS_LIMIT, SEED_BITS, SamplingParams, biases_of

#: OpenAI's default, where the checkpoint has none.
TEMPERATURE = 1.0
#: The fields for which a checkpoint may have defaults.
_RECOMMENDED = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
#: The priority of each `service_tier` that has one of its own.
_PRIORITIES = {"priority": 1, "flex": 8}


def sampling_of(
    body: OpenAiRequest, *, max_tokens: int, logprobs: int | None = None, prompt_logprobs: int | None = None
) -> SamplingParams:
    """The sampling fields of a request, always with a seed. Neutral values are left out.

    `max_tokens` above the limit is reduced to it.
    """
    return SamplingParams(
        max_tokens=max(1, min(max_tokens, MAX_TOKENS_LIMIT)),
        temperature=TEMPERATURE if body.temperature is None else body.temperature,
        top_k=body.top_k if (body.top_k or 0) > 0 else None,
        top_p=None if body.top_p == 1 else body.top_p,
        min_p=body.min_p or None,
        presence_penalty=body.presence_penalty or None,
        frequency_penalty=body.frequency_penalty or None,
        repetition_penalty=None if body.repetition_penalty == 1 else body.repetition_penalty,
        logit_bias=biases_of(body.logit_bias or {}),
        stop=tuple(dict.fromkeys(body.stop or ())),
        stop_token_ids=tuple(dict.fromkeys(body.stop_token_ids or ())),
        ignore_eos=bool(body.ignore_eos),
        min_tokens=body.min_tokens or None,
        seed=None if body.seed is None else folded_seed(body.seed),
        logprobs=logprobs,
        prompt_logprobs=prompt_logprobs,
    ).with_seed()


def unset_fields(body: OpenAiRequest) -> frozenset[str]:
    """The fields that get the checkpoint's default, because the request does not set them. null sets nothing."""
    return frozenset(name for name in _RECOMMENDED if getattr(body, name) is None)


def folded_seed(seed: int) -> int:
    """A seed of the queue for any integer: the same one, or a hash of it if it is negative or has too many bits."""
    if 0 <= seed < 1 << SEED_BITS:
        return seed
    size = seed.bit_length() // 8 + 1
    digest = hashlib.sha256(seed.to_bytes(size, "little", signed=True)).digest()
    return int.from_bytes(digest[:8], "little") >> (64 - SEED_BITS)


def priority_of(body: OpenAiRequest) -> int:
    """The priority of the call's jobs."""
    if body.priority is not None:
        return body.priority
    return _PRIORITIES.get(body.service_tier or "", DEFAULT_PRIORITY)
