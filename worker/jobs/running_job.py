"""One claimed job inside a worker: what its log holds, what is still to be sent, and how it ends."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from tasks.failures import DEADLINE_EXCEEDED
from tasks.generation import FinishReason
from tasks.job import ErrorCode, JobError, Status
from tasks.store.worker_store import AppendTokens, FinishJob
from worker.engine.update import Update
from worker.jobs.detokenizer import Detokenizer

_SUCCESSES = {
    FinishReason.STOP: FinishReason.STOP,
    FinishReason.NEWLINE: FinishReason.NEWLINE,
    FinishReason.LENGTH: FinishReason.LENGTH,
}


@dataclass(slots=True)
class RunningJob:
    """State of one attempt. Only the publisher's thread changes it after the claim; `over` may be waited for."""

    job_id: str
    attempt: int
    assembler: Detokenizer
    #: Tokens and pieces of the whole job, those of earlier attempts included.
    token_ids: list[int]
    pieces: list[str]
    #: Tokens that Redis has confirmed.
    logged: int
    #: Whether somebody read along when its tokens were sent last.
    followed: bool = False
    #: Where the job is suspected of killing engines: the length of the log that clears it, and who is told.
    cleared_at: int | None = None
    on_cleared: Callable[[], None] | None = None
    #: Tokens that were known here when the bell of a cancel rang; None: it did not.
    tokens_at_cancel: int | None = None
    tail: str = ""
    finish: FinishReason | None = None
    error: str | None = None
    #: Set when this worker has nothing more to do for the job: it is finished, handed back, or no longer ours.
    over: threading.Event = field(default_factory=threading.Event)

    @property
    def sequence_id(self) -> str:
        """The attempt's name in the engine: what an earlier attempt still reports is not taken for this one's."""
        return f"{self.job_id}/{self.attempt}"

    @staticmethod
    def job_of(sequence_id: str) -> str:
        """The job whose attempt has this name in the engine."""
        return sequence_id.rpartition("/")[0]

    @property
    def dirty(self) -> bool:
        """Whether Redis lacks something."""
        return self.finish is not None or len(self.token_ids) > self.logged

    @property
    def urgent(self) -> bool:
        """Whether somebody waits: readers for the first token of all and the end, other jobs for its being cleared."""
        return (
            self.finish is not None
            or (self.logged == 0 and bool(self.token_ids))
            or (self.cleared_at is not None and len(self.token_ids) >= self.cleared_at)
        )

    def confirm(self, length: int) -> None:
        """Redis has so many of its tokens."""
        self.logged = length
        if self.cleared_at is not None and length >= self.cleared_at:
            self.cleared_at = None
            if self.on_cleared is not None:
                self.on_cleared()

    def extend(self, update: Update) -> None:
        """Take in what the engine decoded, and turn it into text."""
        # What was decoded behind a stop string that the text alone showed is not part of the text.
        pieces = self.assembler.push_all(update.tokens)
        self.pieces += pieces
        self.token_ids += update.tokens[: len(pieces)]
        if update.finish is None:
            if self.assembler.ended:
                self.finish = FinishReason.STOP
            return
        self.finish = update.finish
        self.error = update.error
        # Apart from the pieces, even where there is a last one: that piece may have reached Redis without the tail.
        self.tail = self.assembler.finish()

    def operation(self) -> AppendTokens | FinishJob:
        """What brings Redis up to date."""
        token_ids = tuple(self.token_ids[self.logged :])
        pieces = tuple(self.pieces[self.logged :])
        if self.finish is None:
            return AppendTokens(
                job_id=self.job_id, attempt=self.attempt, before=self.logged, token_ids=token_ids, pieces=pieces
            )
        status, reason, error = self._outcome(self.finish)
        return FinishJob(
            job_id=self.job_id,
            attempt=self.attempt,
            before=self.logged,
            token_ids=token_ids,
            pieces=pieces,
            tail=self.tail,
            status=status,
            finish_reason=reason,
            completion="".join(self.pieces) + self.tail,
            error=error,
            tokens_at_cancel=self.tokens_at_cancel,
        )

    def _outcome(self, finish: FinishReason) -> tuple[Status, FinishReason, JobError | None]:
        if finish in _SUCCESSES:
            return Status.SUCCEEDED, _SUCCESSES[finish], None
        if finish is FinishReason.CANCELLED:
            return Status.CANCELLED, FinishReason.CANCELLED, None
        if finish is FinishReason.DEADLINE:
            return Status.FAILED, FinishReason.DEADLINE, DEADLINE_EXCEEDED
        message = f"Decoding failed: {self.error or 'no reason given'}"
        return Status.FAILED, FinishReason.ERROR, JobError(ErrorCode.INTERNAL, message, retryable=True)
