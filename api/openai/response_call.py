"""Translates the body of `POST /v1/responses`."""

from __future__ import annotations

from collections.abc import Sequence

from api.http.problems import invalid
from api.openai.call import Call
from api.openai.neutral_values import ignored_in_response
from api.openai.response_record import ResponseRecord
from api.openai.sampling import priority_of, sampling_of, unset_fields
from api.schemas.generation import MIN_RESULT_TTL_S
from api.schemas.openai.request import OpenAiRequest
from api.schemas.openai.responses import LOGPROBS, ResponseRequest
from tasks.chat import Message
from tasks.generation import Generation
from tasks.sampling_params import MAX_TOKENS_LIMIT


def response_call(body: ResponseRequest, history: Sequence[Message]) -> Call:
    """The call of a request, which continues `history`. Raises ApiError."""
    ignored = ignored_in_response(body.model_extra)
    background = bool(body.background)
    store = body.store is not False
    if background and not store:
        raise invalid(("body", "background"), "background needs store: true.", "invalid_value", given=True)
    # The sampling fields mean the same as those of the other routes.
    shared = OpenAiRequest(
        temperature=body.temperature,
        top_p=body.top_p,
        stop=body.stop,
        ignore_eos=body.ignore_eos,
        seed=body.seed,
        service_tier=body.service_tier,
        priority=body.priority,
    )
    sampling = sampling_of(
        shared,
        max_tokens=MAX_TOKENS_LIMIT if body.max_output_tokens is None else body.max_output_tokens,
        logprobs=(body.top_logprobs or 0) if LOGPROBS in (body.include or ()) else None,
    )
    own = [Message("system" if one.role == "developer" else one.role, one.content) for one in body.input]
    first = [Message("system", body.instructions)] if body.instructions else []
    record = ResponseRecord(
        own_messages=len(own),
        has_instructions=bool(first),
        previous_response_id=body.previous_response_id,
        background=background,
        store=store,
        service_tier=body.service_tier or "auto",
        max_output_tokens=body.max_output_tokens,
    )
    return Call(
        model=body.model,
        generations=[Generation(messages=(*first, *history, *own), sampling=sampling, tools=body.calculator)],
        unset_fields=unset_fields(shared),
        priority=priority_of(shared),
        metadata={**(body.metadata or {}), **record.to_metadata()},
        wait_for_worker=bool(body.wait_for_worker),
        stream=bool(body.stream),
        result_ttl_s=None if store else MIN_RESULT_TTL_S,
        ignored=ignored,
        logprobs=sampling.logprobs is not None,
    )
