"""One claimed job in a worker: what its log in Redis holds, what must still be sent, and how it ends."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from tasks.failures import DEADLINE_EXCEEDED
from tasks.generation import FinishReason
from tasks.job import ErrorCode, JobError, Status
from tasks.store.job_writes import AppendTokens, FinishJob
from worker.engine_process.messages import Failure, Update
from worker.engine_process.sequence_id import sequence_id_of
from worker.jobs.detokenizer import Detokenizer

_SUCCESSES = {FinishReason.STOP, FinishReason.NEWLINE, FinishReason.LENGTH}


@dataclass(slots=True, kw_only=True)
class RunningJob:
    """State of one attempt at a job. After the claim only the publisher's thread changes it.

    Any thread may wait for `over`.
    """

    job_id: str
    attempt: int
    detokenizer: Detokenizer
    #: Tokens and pieces of the whole job, including those of earlier attempts.
    token_ids: list[int]
    pieces: list[str]
    #: Packed log-probabilities of each token; empty if the request did not ask for them.
    logprobs: list[bytes] = field(default_factory=list)
    #: Packed log-probabilities of the prompt; empty if the log has them already, or if there are none.
    prompt_logprobs: bytes = b""
    #: Packed log-probabilities of the stop token that ended the text.
    stop_logprobs: bytes = b""
    #: Tokens of the prompt that the engine found in its cache; None before its first report.
    cached_tokens: int | None = None
    #: Number of tokens that the log in Redis holds, by its last reply.
    logged: int
    #: When this attempt began, by `time.monotonic()`.
    claimed_at: float = field(default_factory=time.monotonic)
    #: Whether a client streamed the job when its tokens were last sent.
    streamed: bool = False
    #: For a suspect: the length of the log that clears it, and what to call then.
    cleared_at: int | None = None
    on_cleared: Callable[[], None] | None = None
    #: Number of tokens when the first notification of a cancel arrived; None without a notification.
    tokens_at_cancel: int | None = None
    tail: str = ""
    finish: FinishReason | None = None
    error: Failure | None = None
    #: Set when this worker has no more work with the job: it is finished, released, or another worker's.
    over: threading.Event = field(default_factory=threading.Event)

    @property
    def seconds(self) -> float:
        """Seconds since the claim."""
        return round(time.monotonic() - self.claimed_at, 3)

    @property
    def sequence_id(self) -> str:
        """Id of its sequence in the engine."""
        return sequence_id_of(self.job_id, self.attempt)

    @property
    def dirty(self) -> bool:
        """Whether something must be sent to Redis."""
        return self.finish is not None or len(self.token_ids) > self.logged

    @property
    def urgent(self) -> bool:
        """Whether it must be sent at once: the first token and the end, which clients wait for, and the token that
        clears a suspect, which other jobs wait for."""
        return (
            self.finish is not None
            or (self.logged == 0 and bool(self.token_ids))
            or (self.cleared_at is not None and len(self.token_ids) >= self.cleared_at)
        )

    def confirm(self, length: int) -> None:
        """Record that the log holds `length` tokens."""
        self.logged = length
        if self.cleared_at is not None and length >= self.cleared_at:
            self.cleared_at = None
            if self.on_cleared is not None:
                self.on_cleared()

    def extend(self, update: Update) -> None:
        """Add what the engine decoded, and turn it into text."""
        # The text may show a stop text that the engine did not find. Tokens after it are not part of the text.
        pieces = self.detokenizer.push_all(update.tokens)
        self.pieces += pieces
        self.token_ids += update.tokens[: len(pieces)]
        if update.logprobs:
            records = len(update.tokens) + (update.stop_id is not None)
            size = len(update.logprobs) // records
            self.logprobs += [update.logprobs[at : at + size] for at in range(0, len(pieces) * size, size)]
            if update.stop_id is not None and len(pieces) == len(update.tokens):
                self.stop_logprobs = update.logprobs[-size:]
        if update.prompt_logprobs:
            self.prompt_logprobs = update.prompt_logprobs
        if update.cached_tokens is not None:
            self.cached_tokens = update.cached_tokens
        if update.finish is None:
            if self.detokenizer.ended:
                self.finish = FinishReason.STOP
            return
        self.finish = update.finish
        self.error = update.error
        # The tail is sent apart from the last piece, which may be in Redis already.
        self.tail = self.detokenizer.finish()

    def operation(self) -> AppendTokens | FinishJob:
        """The write that brings Redis up to date."""
        tokens = AppendTokens(
            job_id=self.job_id,
            attempt=self.attempt,
            before=self.logged,
            token_ids=tuple(self.token_ids[self.logged :]),
            pieces=tuple(self.pieces[self.logged :]),
            logprobs=b"".join(self.logprobs[self.logged :]),
            # The log takes them together with the first token.
            prompt_logprobs=b"" if self.logged else self.prompt_logprobs,
        )
        if self.finish is None:
            return tokens
        status, error = self._outcome(self.finish)
        return FinishJob(
            tokens=tokens,
            tail=self.tail,
            stop_logprobs=self.stop_logprobs,
            status=status,
            finish_reason=self.finish,
            completion="".join(self.pieces) + self.tail,
            error=error,
            tokens_at_cancel=self.tokens_at_cancel,
            cached_tokens=self.cached_tokens,
            tool_calls=self.detokenizer.tool_calls,
        )

    def _outcome(self, finish: FinishReason) -> tuple[Status, JobError | None]:
        if finish in _SUCCESSES:
            return Status.SUCCEEDED, None
        if finish is FinishReason.CANCELLED:
            return Status.CANCELLED, None
        if finish is FinishReason.DEADLINE:
            return Status.FAILED, DEADLINE_EXCEEDED
        failure = self.error or Failure("no reason given")
        code = ErrorCode.OUT_OF_MEMORY if failure.out_of_memory else ErrorCode.INTERNAL
        return Status.FAILED, JobError(code, f"Decoding failed: {failure.message}", retryable=True)
