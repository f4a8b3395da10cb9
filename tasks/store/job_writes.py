"""What a worker writes about a running job: new tokens, or its end, and what Redis replies."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tasks import token_log
from tasks.generation import FinishReason
from tasks.job import JobError, Status
from tasks.store import scripts
from tasks.tool_call import ToolCall, tool_calls_to_json


@dataclass(frozen=True, slots=True, kw_only=True)
class AppendTokens:
    """New tokens of a running job."""

    job_id: str
    attempt: int
    #: Length of the log that the sender assumes, in tokens. Tokens that the log already holds are skipped.
    before: int
    token_ids: tuple[int, ...]
    #: One text for each token.
    pieces: tuple[str, ...]
    #: Packed log-probabilities of these tokens, and those of the prompt; empty if the request did not ask for them.
    logprobs: bytes = b""
    prompt_logprobs: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class FinishJob:
    """The end of a running job, with its last tokens."""

    tokens: AppendTokens
    #: Packed log-probabilities of the stop token that ended the text; empty if there are none.
    stop_logprobs: bytes = b""
    #: Text after that of the last token: it was held back, or it belongs to no token.
    tail: str
    status: Status
    finish_reason: FinishReason
    #: The whole generated text.
    completion: str
    error: JobError | None = None
    #: Number of tokens that the worker had when it was notified of a cancel; None if it was not notified.
    tokens_at_cancel: int | None = None
    #: Tokens of the prompt that this attempt found in the cache; None if it is not known.
    cached_tokens: int | None = None
    tool_calls: tuple[ToolCall, ...] = ()

    @property
    def job_id(self) -> str:
        return self.tokens.job_id


@dataclass(frozen=True, slots=True, kw_only=True)
class FlushReply:
    """The result of an AppendTokens or a FinishJob."""

    #: This attempt does not hold the job: nothing was written, and every later write will be refused.
    fenced: bool = False
    #: The log holds fewer tokens than `before`: nothing was written. Send again from `length`.
    gap: bool = False
    #: Number of tokens in the log now.
    length: int = 0
    cancel_requested: bool = False
    #: Whether a subscriber was notified of the new tokens.
    has_subscribers: bool = False


def script_of(item: AppendTokens | FinishJob) -> scripts.Script:
    """The script that writes an item."""
    return scripts.get("append" if isinstance(item, AppendTokens) else "finish")


def arguments_of(item: AppendTokens | FinishJob) -> tuple[scripts.Argument, ...]:
    """The arguments of that script."""
    tokens = item if isinstance(item, AppendTokens) else item.tokens
    appended = (
        tokens.job_id,
        tokens.attempt,
        tokens.before,
        token_log.encode_ids(tokens.token_ids),
        token_log.encode_pieces(tokens.pieces),
        tokens.logprobs,
        tokens.prompt_logprobs,
    )
    if isinstance(item, AppendTokens):
        return appended
    fields: dict[str, scripts.Argument] = {}
    if item.cached_tokens is not None:
        fields["cached_tokens"] = item.cached_tokens
    if item.tool_calls:
        fields["tool_calls"] = tool_calls_to_json(item.tool_calls)
    return (
        *appended,
        token_log.encode_pieces([item.tail]) if item.tail else "",
        item.stop_logprobs,
        item.status,
        item.finish_reason,
        item.completion,
        item.error.to_json() if item.error else "",
        "" if item.tokens_at_cancel is None else str(item.tokens_at_cancel),
        *(part for field in fields.items() for part in field),
    )


def flush_reply(reply: list[Any]) -> FlushReply:
    """The reply of that script."""
    match reply:
        case [b"fenced"]:
            return FlushReply(fenced=True)
        case [b"gap", length]:
            return FlushReply(gap=True, length=length)
        case [_, length, cancel_requested, subscribers]:
            return FlushReply(length=length, cancel_requested=bool(cancel_requested), has_subscribers=bool(subscribers))
        case _:
            raise TypeError(f"not a reply of append or finish: {reply!r}")
