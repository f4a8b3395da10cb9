"""The job record and its states. Only the scripts in `tasks/lua` write records."""

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
        """Whether the job has ended."""
        return self not in (Status.QUEUED, Status.RUNNING)


class ErrorCode(StrEnum):
    """Why a job failed. Problem details use the same codes."""

    INVALID_REQUEST = "invalid_request"
    PROMPT_TOO_LONG = "prompt_too_long"
    #: The checkpoint's weights were replaced after the job was accepted.
    CHECKPOINT_CHANGED = "checkpoint_changed"
    WORKER_LOST = "worker_lost"
    #: No worker started the job within its `queue_timeout_s`.
    START_TIMEOUT = "start_timeout"
    DEADLINE_EXCEEDED = "deadline_exceeded"
    OUT_OF_MEMORY = "out_of_memory"
    INTERNAL = "internal"


@dataclass(frozen=True, slots=True)
class JobError:
    """The error of a failed or expired job."""

    code: ErrorCode
    message: str
    retryable: bool

    def to_json(self) -> str:
        """The error as one line of JSON."""
        return json.dumps({"code": self.code, "message": self.message, "retryable": self.retryable})


@dataclass(frozen=True, slots=True, kw_only=True)
class TimeLimits:
    """Time limits of a job in ms; None for no limit."""

    #: From the submission to the first start.
    queue_timeout_ms: int | None = None
    #: Running time, in all attempts together.
    run_timeout_ms: int | None = None
    #: From the submission to the end.
    deadline_ms: int | None = None


@dataclass(frozen=True, slots=True)
class Cancellation:
    """A cancel request and its effect. Times as in Job."""

    requested_at: int
    #: When the job ended; None while it runs.
    acked_at: int | None
    #: Number of tokens that were generated after the request; None while the job runs.
    tokens_after: int | None

    @property
    def latency_ms(self) -> int | None:
        """Time from the request to the end of the job in ms."""
        return None if self.acked_at is None else self.acked_at - self.requested_at


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A job as read from its record. Times are ms since the Unix epoch, by Redis's clock."""

    id: str
    owner: str
    #: Increases with every change.
    version: int
    status: Status
    checkpoint: str
    #: Digest of the card that the request was validated against.
    digest: str
    generation: Generation
    priority: int
    limits: TimeLimits
    #: Id of the job that this one repeats.
    retry_of: str | None
    created_at: int
    #: When `limits.deadline_ms` has passed.
    deadline_at: int | None
    started_at: int | None
    first_token_at: int | None
    finished_at: int | None
    expires_at: int | None
    #: How long the record is kept after the job's end, in ms.
    result_ttl_ms: int
    #: Number of claims so far. A write of an earlier attempt is refused.
    attempt: int
    #: How often a worker or an engine was lost while it ran the job: in all, and since the last new token.
    losses: int
    losses_in_a_row: int
    #: Tokens of earlier attempts that the current attempt continued from.
    resumed_tokens: int
    worker: str | None
    prompt_tokens: int | None
    #: Number of tokens in the log.
    tokens: int
    #: The generated text; None until the job has ended.
    completion: str | None
    finish_reason: FinishReason | None
    error: JobError | None
    warnings: tuple[str, ...]
    cancellation: Cancellation | None
    metadata: Mapping[str, str]
    #: Number of jobs ahead of this one; None if the job does not wait, or if the caller did not read it.
    position: int | None = None

    @classmethod
    def from_hash(cls, fields: Mapping[bytes, bytes], position: int | None = None) -> Job:
        """The job in the reply of HGETALL. `fields` must not be empty."""
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
