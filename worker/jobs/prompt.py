"""The rules for a prompt, which the queue and `celeriac run` share."""

from __future__ import annotations

from collections.abc import Sequence

from tasks.card import Card
from tasks.chat import Message
from tasks.generation import Generation
from tasks.job import ErrorCode
from worker.checkpoints.chat import ChatError
from worker.checkpoints.tokenizers import Tokenizer, TokenizerFailedError, UnknownCharacterError


class PromptError(Exception):
    """The request can never run on this checkpoint, or on this worker. The message is for its sender."""

    def __init__(self, code: ErrorCode, message: str) -> None:
        super().__init__(message)
        self.code = code


def prompt_of(
    generation: Generation, tokenizer: Tokenizer, card: Card, *, now: float
) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """The token ids of a request's prompt, however it is given, and warnings. Raises PromptError.

    `now` is the time that a chat template may print, in seconds since 1970: that of the submission, so that every
    attempt has the same prompt.
    """
    if generation.prompt_ids is not None:
        if any(token >= card.vocab_size for token in generation.prompt_ids):
            raise PromptError(
                ErrorCode.INVALID_REQUEST, f"Token ids of {card.name} are between 0 and {card.vocab_size - 1}."
            )
        return generation.prompt_ids, ()
    if generation.messages is not None:
        return render_messages(tokenizer, generation.messages, card.name, now=now), ()
    return encode_prompt(tokenizer, generation.prompt, add_bos=generation.add_bos)


def encode_prompt(
    tokenizer: Tokenizer, text: str, *, add_bos: bool | None = None
) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """The token ids of a text and warnings. Raises PromptError.

    BOS comes first with `add_bos`, and without a choice (None) if the checkpoint requires it.
    """
    try:
        encoding = tokenizer.encode(text)
    except (UnknownCharacterError, TokenizerFailedError) as error:
        raise PromptError(ErrorCode.INVALID_REQUEST, str(error)) from error
    wants_bos = tokenizer.prepend_bos if add_bos is None else add_bos
    bos = (tokenizer.bos_id,) if wants_bos and tokenizer.bos_id is not None else ()
    return bos + encoding.ids, encoding.warnings


def render_messages(
    tokenizer: Tokenizer, messages: Sequence[Message], model: str, *, now: float | None = None
) -> tuple[int, ...]:
    """The token ids of a conversation, up to where the next answer begins. Raises PromptError.

    `now` None: the present time.
    """
    if tokenizer.chat is None:
        raise PromptError(ErrorCode.INVALID_REQUEST, f"{model} is not a chat model: it has no chat template.")
    try:
        return tokenizer.chat.render(messages, now=now)
    except (ChatError, UnknownCharacterError, TokenizerFailedError) as error:
        raise PromptError(ErrorCode.INVALID_REQUEST, str(error)) from error


def uses_tools(generation: Generation, card: Card) -> bool:
    """Whether the model may use the calculator: if the request says so, else in conversations."""
    if generation.tools is None:
        return card.tokenizer.calculator and generation.messages is not None
    return card.tokenizer.calculator and generation.tools


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
