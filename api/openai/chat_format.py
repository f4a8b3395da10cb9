"""Answers and chunks of `POST /v1/chat/completions`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict

from api.openai.answer_format import AnswerHead, ChoiceAnswer, choice_job
from api.openai.choice_reader import Piece, TokenItem, finite
from api.openai.token_names import TokenNames
from api.schemas.openai.answer import StopReason, TokenUsage
from api.schemas.openai.chat import (
    AssistantMessage,
    ChatAlternative,
    ChatChoice,
    ChatChunk,
    ChatChunkChoice,
    ChatCompletion,
    ChatDelta,
    ChatLogprobs,
    ChatTokenLogprob,
)
from tasks.job import Job


class ChatFormat:
    """Implements `AnswerFormat`."""

    id_prefix = "chatcmpl-"

    def answer(
        self, head: AnswerHead, choices: Sequence[ChoiceAnswer], usage: TokenUsage, names: TokenNames | None
    ) -> ChatCompletion:
        """The whole answer."""
        return ChatCompletion(
            **asdict(head),
            object="chat.completion",
            choices=[
                ChatChoice(
                    index=index,
                    message=AssistantMessage(role="assistant", content=choice.text, refusal=None),
                    logprobs=_logprobs((token for piece in choice.pieces for token in piece.tokens), names),
                    finish_reason=choice.finish_reason,
                    celeriac=choice_job(choice.job),
                )
                for index, choice in enumerate(choices)
            ],
            usage=usage,
        )

    def opening(self, head: AnswerHead, index: int) -> ChatChunk:
        """The chunk with the role."""
        return _chunk(head, _choice(index, ChatDelta(role="assistant", content="")))

    def chunk(self, head: AnswerHead, index: int, piece: Piece, names: TokenNames | None) -> ChatChunk:
        """The chunk with a piece of a choice."""
        # A last piece of text may belong to no token.
        logprobs = _logprobs(piece.tokens, names) if piece.tokens else None
        return _chunk(head, _choice(index, ChatDelta(content=piece.text), logprobs))

    def closing(self, head: AnswerHead, index: int, job: Job, finish_reason: StopReason) -> ChatChunk:
        """The last chunk of a choice."""
        choice = ChatChunkChoice(
            index=index, delta=ChatDelta(), logprobs=None, finish_reason=finish_reason, celeriac=choice_job(job)
        )
        return _chunk(head, choice)

    def counts(self, head: AnswerHead) -> ChatChunk:
        """The chunk without choices."""
        return _chunk(head)


def _chunk(head: AnswerHead, *choices: ChatChunkChoice) -> ChatChunk:
    return ChatChunk(**asdict(head), object="chat.completion.chunk", choices=list(choices))


def _choice(index: int, delta: ChatDelta, logprobs: ChatLogprobs | None = None) -> ChatChunkChoice:
    return ChatChunkChoice(index=index, delta=delta, logprobs=logprobs, finish_reason=None)


def _logprobs(tokens: Iterable[TokenItem], names: TokenNames | None) -> ChatLogprobs | None:
    if names is None:
        return None
    return ChatLogprobs(content=token_logprobs(tokens, names))


def token_logprobs(tokens: Iterable[TokenItem], names: TokenNames) -> list[ChatTokenLogprob]:
    """The log-probabilities of tokens as chats and responses have them."""
    return [_token(token, names) for token in tokens]


def _token(token: TokenItem, names: TokenNames) -> ChatTokenLogprob:
    return ChatTokenLogprob(
        token=names.name(token.token_id),
        logprob=token.logprob or 0.0,
        bytes=names.utf8(token.token_id),
        top_logprobs=[
            ChatAlternative(token=names.name(one.token_id), logprob=finite(one.logprob), bytes=names.utf8(one.token_id))
            for one in token.top
        ],
    )
