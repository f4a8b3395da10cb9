"""The response object of a job."""

from __future__ import annotations

from collections.abc import Sequence

from api.openai.chat_format import token_logprobs
from api.openai.choice_reader import Piece
from api.openai.response_record import ResponseRecord, input_id, item_id, own_metadata, response_id
from api.openai.token_names import TokenNames
from api.schemas.openai.chat import ChatTokenLogprob
from api.schemas.openai.responses import (
    IncompleteDetails,
    InputItem,
    InputText,
    InputTokensDetails,
    ModelResponse,
    OutputMessage,
    OutputText,
    OutputTokensDetails,
    ResponseFailure,
    ResponseJob,
    ResponseStatus,
    ResponseUsage,
)
from tasks.generation import FinishReason
from tasks.job import ErrorCode, Job, Status

_MS_PER_S = 1000
#: Errors in the prompt that only the worker can find.
_PROMPT_ERRORS = (ErrorCode.INVALID_REQUEST, ErrorCode.PROMPT_TOO_LONG)


def response_status(job: Job) -> ResponseStatus:
    """The status of a response."""
    match job.status:
        case Status.QUEUED:
            return "queued"
        case Status.RUNNING:
            return "in_progress"
        case Status.SUCCEEDED:
            return "incomplete" if job.finish_reason is FinishReason.LENGTH else "completed"
        case Status.CANCELLED:
            return "cancelled"
        case _:
            return "failed"


def response_object(
    job: Job,
    record: ResponseRecord,
    pieces: Sequence[Piece],
    names: TokenNames,
    *,
    status: ResponseStatus | None = None,
) -> ModelResponse:
    """The response of a job, with its text so far. `status`: another one than that of the job, without an output."""
    sampling = job.generation.sampling
    messages = job.generation.messages or ()
    shown = response_status(job) if status is None else status
    over = status is None and job.status.terminal
    return ModelResponse(
        id=response_id(job.id),
        created_at=job.created_at // _MS_PER_S,
        completed_at=job.finished_at // _MS_PER_S if over and job.finished_at and shown == "completed" else None,
        status=shown,
        background=record.background,
        error=_failure(job) if over else None,
        incomplete_details=IncompleteDetails(reason="max_output_tokens") if shown == "incomplete" else None,
        instructions=messages[0].content if record.has_instructions else None,
        max_output_tokens=record.max_output_tokens,
        metadata=own_metadata(job),
        model=job.checkpoint,
        output=[message(job, pieces, names)] if status is None and (pieces or job.status is Status.SUCCEEDED) else [],
        previous_response_id=record.previous_response_id,
        service_tier="default" if record.service_tier == "auto" else record.service_tier,
        store=record.store,
        temperature=sampling.temperature,
        top_logprobs=sampling.logprobs or 0,
        top_p=1.0 if sampling.top_p is None else sampling.top_p,
        usage=_usage(job) if over else None,
        celeriac=ResponseJob(
            job_id=job.id,
            attempts=job.attempt,
            tool_calls=[{"input": call.input, "output": call.output} for call in job.tool_calls],
        ),
    )


def message(job: Job, pieces: Sequence[Piece], names: TokenNames) -> OutputMessage:
    """The answer so far."""
    status = response_status(job)
    return OutputMessage(
        id=item_id(job.id),
        status="in_progress" if not job.status.terminal else "completed" if status == "completed" else "incomplete",
        content=[output_text(pieces, names)],
    )


def output_text(pieces: Sequence[Piece], names: TokenNames) -> OutputText:
    """The content of the answer so far."""
    return OutputText(
        text="".join(piece.text for piece in pieces),
        logprobs=[one for piece in pieces for one in piece_logprobs(piece, names)],
    )


def piece_logprobs(piece: Piece, names: TokenNames) -> list[ChatTokenLogprob]:
    """The log-probabilities of a piece; empty if they were not asked for."""
    return token_logprobs(piece.tokens, names)


def input_items(job: Job, record: ResponseRecord) -> list[InputItem]:
    """The messages of the response's own input, in their order."""
    own = (job.generation.messages or ())[-record.own_messages :]
    return [
        InputItem.model_validate(
            {
                "id": input_id(job.id, index),
                "role": one.role,
                "content": [
                    InputText(type="output_text" if one.role == "assistant" else "input_text", text=one.content)
                ],
            }
        )
        for index, one in enumerate(own)
    ]


def _failure(job: Job) -> ResponseFailure | None:
    if job.error is None:
        return None
    code = "invalid_prompt" if job.error.code in _PROMPT_ERRORS else "server_error"
    return ResponseFailure.model_validate({"code": code, "message": job.error.message})


def _usage(job: Job) -> ResponseUsage:
    prompt = job.prompt_tokens or 0
    return ResponseUsage(
        input_tokens=prompt,
        input_tokens_details=InputTokensDetails(cached_tokens=job.cached_tokens or 0),
        output_tokens=job.tokens,
        output_tokens_details=OutputTokensDetails(),
        total_tokens=prompt + job.tokens,
    )
