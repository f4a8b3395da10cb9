"""The rules for a prompt, which the queue and `celeriac run` share."""

from __future__ import annotations

from collections.abc import Sequence

from tasks.job import ErrorCode
from worker.checkpoints.tokenizers import Tokenizer, TokenizerFailedError, UnknownCharacterError


class PromptError(Exception):
    """The request can never run on this checkpoint, or on this worker. The message is for its sender."""

    def __init__(self, code: ErrorCode, message: str) -> None:
        super().__init__(message)
        self.code = code


def encode_prompt(tokenizer: Tokenizer, text: str) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """The token ids of a prompt and warnings. BOS comes first if the checkpoint requires it. Raises PromptError."""
    try:
        encoding = tokenizer.encode(text)
    except (UnknownCharacterError, TokenizerFailedError) as error:
        raise PromptError(ErrorCode.INVALID_REQUEST, str(error)) from error
    bos = (tokenizer.bos_id,) if tokenizer.prepend_bos and tokenizer.bos_id is not None else ()
    return bos + encoding.ids, encoding.warnings


def answer_tokens(prompt: Sequence[int], max_tokens: int, *, context: int) -> int:
    """`max_tokens`, or the room that the context has after `prompt` if that is less. At least 1. Raises PromptError."""
    if not prompt:
        raise PromptError(ErrorCode.INVALID_REQUEST, "The prompt has no token that this checkpoint knows.")
    if len(prompt) >= context:
        raise PromptError(
            ErrorCode.PROMPT_TOO_LONG,
            f"The prompt has {len(prompt)} tokens; the context of {context} leaves no room for an answer. Shorten it "
            f"to at most {context - 1} tokens.",
        )
    return min(max_tokens, context - len(prompt))
