"""Answers and chunks of `POST /v1/completions`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict

from api.openai.answer_format import AnswerHead, ChoiceAnswer, choice_job
from api.openai.choice_reader import Piece, TokenItem, finite
from api.openai.token_names import TokenNames
from api.schemas.openai.answer import StopReason, TokenUsage
from api.schemas.openai.completions import Completion, CompletionChoice, CompletionLogprobs
from tasks.job import Job


class CompletionFormat:
    """Implements `AnswerFormat`."""

    id_prefix = "cmpl-"

    def answer(
        self, head: AnswerHead, choices: Sequence[ChoiceAnswer], usage: TokenUsage, names: TokenNames | None
    ) -> Completion:
        """The whole answer."""
        return Completion(
            **asdict(head),
            object="text_completion",
            choices=[
                CompletionChoice(
                    index=index,
                    text=choice.text,
                    logprobs=_logprobs((token for piece in choice.pieces for token in piece.tokens), names),
                    finish_reason=choice.finish_reason,
                    celeriac=choice_job(choice.job),
                )
                for index, choice in enumerate(choices)
            ],
            usage=usage,
        )

    def opening(self, head: AnswerHead, index: int) -> None:
        """Nothing comes before the text."""

    def chunk(self, head: AnswerHead, index: int, piece: Piece, names: TokenNames | None) -> Completion:
        """The chunk with a piece of a choice."""
        # A last piece of text may belong to no token.
        logprobs = _logprobs(piece.tokens, names) if piece.tokens else None
        return _chunk(head, CompletionChoice(index=index, text=piece.text, logprobs=logprobs, finish_reason=None))

    def closing(self, head: AnswerHead, index: int, job: Job, finish_reason: StopReason) -> Completion:
        """The last chunk of a choice."""
        choice = CompletionChoice(
            index=index, text="", logprobs=None, finish_reason=finish_reason, celeriac=choice_job(job)
        )
        return _chunk(head, choice)

    def counts(self, head: AnswerHead) -> Completion:
        """The chunk without choices."""
        return _chunk(head)


def _chunk(head: AnswerHead, *choices: CompletionChoice) -> Completion:
    return Completion(**asdict(head), object="text_completion", choices=list(choices))


def _logprobs(tokens: Iterable[TokenItem], names: TokenNames | None) -> CompletionLogprobs | None:
    if names is None:
        return None
    listed = list(tokens)
    return CompletionLogprobs(
        tokens=[names.name(token.token_id) for token in listed],
        token_logprobs=[token.logprob for token in listed],
        top_logprobs=[_top(token, names) for token in listed],
        text_offset=[token.offset for token in listed],
    )


def _top(token: TokenItem, names: TokenNames) -> dict[str, float] | None:
    """The most likely tokens, and the token itself."""
    if token.logprob is None:
        return None
    found = {names.name(one.token_id): finite(one.logprob) for one in token.top}
    found.setdefault(names.name(token.token_id), token.logprob)
    return found
