"""Keyword options of `generate`, `generate_stream` and `submit`, declared once for both clients.

`generate` and `generate_stream` take `GenerationOptions`; `submit` takes `JobOptions`. An option that is not given,
or None, is not sent, so that the server's default applies. Options in `JOB_DEFAULTS` are always sent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypedDict


class SamplingOptions(TypedDict, total=False):
    """How to continue the prompt, beyond `max_tokens`, `temperature`, `top_k` and `stop_on_newline`."""

    #: Sample from the likeliest tokens that together have this probability; above 0, at most 1. Default: from all.
    top_p: float | None
    #: Sample from the tokens with at least this share of the likeliest one's probability; 0 to 1. Default: from all.
    min_p: float | None
    #: Subtracted from the logit of each token that the answer contains already; -2 to 2. Default: 0.
    presence_penalty: float | None
    #: Subtracted from a token's logit once for each time that the answer contains it already; -2 to 2. Default: 0.
    frequency_penalty: float | None
    #: Divides the logits of tokens that prompt or answer contain already (multiplies negative ones); above 0, at most
    #: 10. Default: 1.
    repetition_penalty: float | None
    #: Added to the logits of these token ids; -100 to 100. Default: none.
    logit_bias: Mapping[int, float] | None
    #: Seed of the random draws: the same request with the same seed gives the same text. Default: a new seed.
    seed: int | None
    #: Up to 16 texts that end the continuation. It is cut before the first of them that occurs.
    stop: Sequence[str] | None
    #: Up to 64 token ids that end the continuation and are not part of it, besides those of the model.
    stop_token_ids: Sequence[int] | None
    #: Neither a stop token nor a stop text ends the continuation before it has this many tokens. Default: 0.
    min_tokens: int | None
    #: True: continue where the model would end the text. Default: False.
    ignore_eos: bool
    #: Keep the log-probability of each generated token, and of this many alternatives; 0 to 20. Default: none.
    logprobs: int | None
    #: The same for the tokens of the prompt.
    prompt_logprobs: int | None


class GenerationOptions(SamplingOptions, total=False):
    """Options of `generate` and `generate_stream`."""

    #: Name of the checkpoint. Required only if the server serves several and has no default.
    model: str | None
    #: A conversation to answer, instead of `prompt`: dictionaries with `role` (`system`, `user` or `assistant`) and
    #: `content`, the oldest first. The checkpoint must be a chat model.
    messages: Sequence[Mapping[str, str]] | None
    #: Token ids to continue, instead of `prompt`. The model gets them as they are.
    prompt_token_ids: Sequence[int] | None
    #: Whether the model may use its calculator, if it knows one. Default: in conversations only.
    tools: bool | None


class JobOptions(GenerationOptions, total=False):
    """Options of `submit`. Times are in seconds."""

    #: 0 is served first, 9 last. Default: 5.
    priority: int
    #: Strings of your own that the job carries. The server stores and returns them.
    metadata: Mapping[str, str] | None
    #: How long the server keeps the job after its end. Default: the server's setting.
    result_ttl_s: int | None
    #: True: accept the job even if no worker serves the checkpoint now. Default: False.
    wait_for_worker: bool
    #: The job expires if it has not started after this time.
    queue_timeout_s: float | None
    #: The job is stopped when it has run for this time, in all attempts together.
    run_timeout_s: float | None
    #: The job is stopped, or expires, if it has not ended after this time, waiting included.
    deadline_s: float | None
    #: Refuse the job, with a QueueFullError and without retries, if more jobs than this are ahead of it.
    max_queue_position: int | None


#: Options that `submit` always sends, and their values if the caller does not give them.
JOB_DEFAULTS: JobOptions = {"priority": 5, "wait_for_worker": False}

#: Method of the clients: the TypedDict that declares its options.
OPTIONS_OF: Mapping[str, type] = {
    "generate": GenerationOptions,
    "generate_stream": GenerationOptions,
    "submit": JobOptions,
}


def check_options(method: str, options: Mapping[str, object]) -> None:
    """Raise TypeError, with Python's usual message, if the method has no such option."""
    for name in options:
        if name not in OPTIONS_OF[method].__annotations__:
            raise TypeError(f"{method}() got an unexpected keyword argument {name!r}")
