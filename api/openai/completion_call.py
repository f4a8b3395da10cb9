"""Translates the body of `POST /v1/completions`."""

from __future__ import annotations

from dataclasses import replace

from api.http.problems import invalid
from api.openai.call import Call, check_group, stream_options_of
from api.openai.neutral_values import ignored_in_completion
from api.openai.sampling import priority_of, sampling_of, unset_fields
from api.schemas.openai.completions import CompletionRequest, Prompt
from tasks.generation import Generation
from tasks.sampling_params import SamplingParams

#: OpenAI's default.
MAX_TOKENS = 16


def completion_call(body: CompletionRequest) -> Call:
    """The call of a request. Raises ApiError."""
    ignored = ignored_in_completion(body.model_extra)
    n = body.n or 1
    check_group(len(body.prompt), n)
    max_tokens = MAX_TOKENS if body.max_tokens is None else body.max_tokens
    echo = bool(body.echo)
    if max_tokens == 0 and not echo:
        raise invalid(
            ("body", "max_tokens"), "max_tokens is at least 1, or 0 with `echo`.", "greater_than_equal", given=0
        )
    sampling = sampling_of(
        body,
        max_tokens=max_tokens,
        logprobs=body.logprobs,
        prompt_logprobs=body.logprobs if echo else None,
    )
    add_bos = False if body.add_special_tokens is False else None
    include_usage, continuous_usage = stream_options_of(body)
    return Call(
        model=body.model,
        generations=[
            replace(_generation(prompt, sampling, add_bos), choice=choice, tools=body.calculator)
            for prompt in body.prompt
            for choice in range(n)
        ],
        unset_fields=unset_fields(body),
        priority=priority_of(body),
        metadata=body.metadata or {},
        wait_for_worker=bool(body.wait_for_worker),
        stream=bool(body.stream),
        include_usage=include_usage,
        continuous_usage=continuous_usage,
        ignored=ignored,
        echo=echo,
        logprobs=body.logprobs is not None,
        tokens_as_ids=bool(body.return_tokens_as_token_ids),
        prompt_only=max_tokens == 0,
    )


def _generation(prompt: Prompt, sampling: SamplingParams, add_bos: bool | None) -> Generation:
    if isinstance(prompt, str):
        return Generation(prompt=prompt, sampling=sampling, add_bos=add_bos)
    return Generation(prompt_ids=prompt, sampling=sampling)
