"""The job record: its states and its shape in Python. The scripts in `tasks/lua` are the only writers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from tasks.generation import FinishReason, Generation


class Status(StrEnum):
    """The states of a job. Terminal ones never change."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"

    @property
    def terminal(self) -> bool:
        """Whether the job is over."""
        return self not in (Status.QUEUED, Status.RUNNING)


class ErrorCode(StrEnum):
    """Why a job failed; the same names stand in problem details."""

    INVALID_REQUEST = "invalid_request"
    PROMPT_TOO_LONG = "prompt_too_long"
    #: The checkpoint's weights are not those that the job was accepted for.
    CHECKPOINT_CHANGED = "checkpoint_changed"
    WORKER_LOST = "worker_lost"
    #: No worker took it up within its `queue_timeout_s`.
    START_TIMEOUT = "start_timeout"
    DEADLINE_EXCEEDED = "deadline_exceeded"
    OUT_OF_MEMORY = "out_of_memory"
    INTERNAL = "internal"


@dataclass(frozen=True, slots=True)
class JobError:
    """What a failed job tells."""

    code: ErrorCode
    message: str
    retryable: bool

    def to_json(self) -> str:
        """As one line of JSON."""
        return json.dumps({"code": self.code, "message": self.message, "retryable": self.retryable})


@dataclass(frozen=True, slots=True, kw_only=True)
class TimeLimits:
    """How long a job may take, in ms; None: as long as it takes."""

    #: From submission to the first start.
    queue_timeout_ms: int | None = None
    #: Running, in all attempts together.
    run_timeout_ms: int | None = None
    #: From submission to the end.
    deadline_ms: int | None = None


@dataclass(frozen=True, slots=True)
class Cancellation:
    """How quickly a cancel took effect."""

    requested_at: int
    acked_at: int | None
    #: Tokens that were decoded after the request.
    tokens_after: int | None

    @property
    def latency_ms(self) -> int | None:
        """From the request until nothing was decoded any more."""
        return None if self.acked_at is None else self.acked_at - self.requested_at


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One read of a record. Times are ms since the epoch, by Redis's clock."""

    id: str
    owner: str
    #: Rises at every write.
    version: int
    status: Status
    checkpoint: str
    #: Digest of the card that the job was accepted under.
    digest: str
    generation: Generation
    priority: int
    limits: TimeLimits
    #: The job that this one repeats.
    retry_of: str | None
    created_at: int
    #: When `limits.deadline_ms` is over.
    deadline_at: int | None
    started_at: int | None
    first_token_at: int | None
    finished_at: int | None
    expires_at: int | None
    #: How long it is kept when it is over.
    result_ttl_ms: int
    #: The fence: rises at every claim.
    attempt: int
    #: Workers and engines that were lost with the job, in all, and since its last new token.
    losses: int
    losses_in_a_row: int
    resumed_tokens: int
    worker: str | None
    prompt_tokens: int | None
    #: Tokens in the log.
    tokens: int
    #: The generated text; None until the job is terminal.
    completion: str | None
    finish_reason: FinishReason | None
    error: JobError | None
    warnings: tuple[str, ...]
    cancellation: Cancellation | None
    metadata: Mapping[str, str]
    #: Jobs ahead of this one (0: next); None unless queued. Filled by reads that ask for it.
    position: int | None = None

    @classmethod
    def from_hash(cls, fields: Mapping[bytes, bytes], position: int | None = None) -> Job:
        """The record in the reply of HGETALL. `fields` must not be empty."""
        text = {name.decode(): value.decode() for name, value in fields.items()}

        def number(name: str) -> int | None:
            return int(text[name]) if name in text else None

        error: JobError | None = None
        if "error" in text:
            raw: dict[str, Any] = json.loads(text["error"])
            error = JobError(ErrorCode(raw["code"]), raw["message"], raw["retryable"])
        cancellation: Cancellation | None = None
        requested = number("cancel_requested_at")
        if requested is not None:
            cancellation = Cancellation(requested, number("cancel_acked_at"), number("cancel_tokens_after"))
        return cls(
            id=text["id"],
            owner=text["owner"],
            version=int(text["version"]),
            status=Status(text["status"]),
            checkpoint=text["checkpoint"],
            digest=text["digest"],
            generation=Generation.from_json(text["input"]),
            priority=int(text["priority"]),
            limits=TimeLimits(
                queue_timeout_ms=number("queue_timeout_ms"),
                run_timeout_ms=number("run_timeout_ms"),
                deadline_ms=number("deadline_ms"),
            ),
            retry_of=text.get("retry_of"),
            created_at=int(text["created_at"]),
            deadline_at=number("deadline_at"),
            started_at=number("started_at"),
            first_token_at=number("first_token_at"),
            finished_at=number("finished_at"),
            expires_at=number("expires_at"),
            result_ttl_ms=int(text["result_ttl_ms"]),
            attempt=int(text["attempt"]),
            losses=int(text["losses"]),
            losses_in_a_row=int(text["losses_in_a_row"]),
            resumed_tokens=int(text["resumed_tokens"]),
            worker=text.get("worker"),
            prompt_tokens=number("prompt_tokens"),
            tokens=int(text["tokens"]),
            completion=text.get("completion"),
            finish_reason=FinishReason(text["finish_reason"]) if "finish_reason" in text else None,
            error=error,
            warnings=tuple(json.loads(text.get("warnings", "[]"))),
            cancellation=cancellation,
            metadata=json.loads(text["metadata"]),
            position=position,
        )
