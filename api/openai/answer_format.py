"""What the two formats of answers have in common: how a call's choices become a body, or the chunks of a stream."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from pydantic import BaseModel

from api.openai.choice_reader import Piece
from api.openai.token_names import TokenNames
from api.schemas.openai.answer import ChoiceJob, StopReason, TokenUsage, ToolUse
from tasks.generation import FinishReason
from tasks.job import Job

#: Hexadecimal digits of the checkpoint's digest that a fingerprint has.
_FINGERPRINT_DIGITS = 16
_MS_PER_S = 1000


@dataclass(frozen=True, slots=True)
class AnswerHead:
    """The members that the answer, and each chunk of it, begins with."""

    id: str
    created: int
    model: str
    system_fingerprint: str

    @classmethod
    def of(cls, prefix: str, first: Job) -> AnswerHead:
        """The head of a call whose first job is `first`. Its id has the id of that job."""
        return cls(
            id=prefix + first.id.removeprefix("job_"),
            created=first.created_at // _MS_PER_S,
            model=first.checkpoint,
            system_fingerprint=f"fp_{first.digest[:_FINGERPRINT_DIGITS]}",
        )


@dataclass(frozen=True, slots=True)
class ChoiceAnswer:
    """A choice whose job has succeeded."""

    job: Job
    pieces: Sequence[Piece]
    finish_reason: StopReason

    @property
    def text(self) -> str:
        """The whole text of the choice."""
        return "".join(piece.text for piece in self.pieces)


class AnswerFormat(Protocol):
    """Bodies of one route. `usage` None: a chunk without token counts."""

    id_prefix: str

    def answer(
        self, head: AnswerHead, choices: Sequence[ChoiceAnswer], usage: TokenUsage, names: TokenNames | None
    ) -> BaseModel:
        """The whole answer. `names` None: without log-probabilities."""

    def opening(self, head: AnswerHead, index: int) -> BaseModel | None:
        """The first chunk of a choice; None if there is nothing to say before its text."""

    def chunk(self, head: AnswerHead, index: int, piece: Piece, names: TokenNames | None) -> BaseModel:
        """The chunk with a piece of a choice. `names` None: without log-probabilities."""

    def closing(self, head: AnswerHead, index: int, job: Job, finish_reason: StopReason) -> BaseModel:
        """The last chunk of a choice, without text."""

    def counts(self, head: AnswerHead) -> BaseModel:
        """The last chunk of a stream, without choices. The caller adds the token counts."""


def stop_reason(job: Job, *, prompt_only: bool) -> StopReason:
    """Why the text of a job that succeeded ended. `prompt_only`: no token of it was asked for."""
    return "length" if prompt_only or job.finish_reason is FinishReason.LENGTH else "stop"


def choice_job(job: Job) -> ChoiceJob:
    """The extension field of a choice."""
    return ChoiceJob(
        job_id=job.id,
        attempts=job.attempt,
        tool_calls=[ToolUse(input=call.input, output=call.output) for call in job.tool_calls],
    )
