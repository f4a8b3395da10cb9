"""The job record and its states. Only the scripts in `tasks/lua` write records.

Processes of several versions may use one Redis during an update. A new field of the record, a new field of the request
(see `tasks.sampling_params`) and a new error code need nothing: older processes show the job without them. A new status
or a new finish reason needs a new `keys.SCHEMA_VERSION`, because an older process would take the record for damaged.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from tasks import record
from tasks.generation import FinishReason, Generation
from tasks.record import RecordFields
from tasks.tool_call import ToolCall, tool_calls_from_json


class Status(StrEnum):
    """The states of a job. Terminal ones do not change, unless the record is damaged."""

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
    #: The checkpoint's files were removed before a worker loaded it.
    CHECKPOINT_REMOVED = "checkpoint_removed"
    #: A worker tried to load the checkpoint and could not.
    CHECKPOINT_UNLOADABLE = "checkpoint_unloadable"
    WORKER_LOST = "worker_lost"
    #: No worker started the job within its `queue_timeout_s`.
    START_TIMEOUT = "start_timeout"
    DEADLINE_EXCEEDED = "deadline_exceeded"
    OUT_OF_MEMORY = "out_of_memory"
    #: The record in Redis was damaged. What it says about the job may be wrong.
    RECORD_DAMAGED = "record_damaged"
    #: The job uses a field that the worker's version does not know.
    UNSUPPORTED = "unsupported"
    INTERNAL = "internal"

    @classmethod
    def _missing_(cls, value: object) -> ErrorCode:
        """A code of a newer version counts as `internal`; the message says more."""
        return cls.INTERNAL


@dataclass(frozen=True, slots=True)
class JobError:
    """The error of a failed or expired job."""

    code: ErrorCode
    message: str
    retryable: bool

    def to_json(self) -> str:
        """The error as one line of JSON."""
        return json.dumps({"code": self.code, "message": self.message, "retryable": self.retryable})

    @classmethod
    def from_json(cls, text: str) -> JobError:
        """The error that `to_json` encoded. Raises ValueError or TypeError for anything else."""
        fields = record.json_value(text, dict)
        code, message, retryable = (fields.get(name) for name in ("code", "message", "retryable"))
        if not isinstance(retryable, bool):
            raise TypeError("not a truth value")
        return cls(ErrorCode(record.checked_text(code)), record.checked_text(message), retryable)


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
class Group:
    """The place of a job among those that one call submitted together. Their ids are consecutive: see `group_ids`."""

    #: Id of the first job.
    id: str
    index: int
    size: int

    def to_text(self) -> str:
        """The group as the record has it: id, index and size, separated by spaces."""
        return f"{self.id} {self.index} {self.size}"

    @classmethod
    def from_text(cls, text: str) -> Group:
        """The group that `to_text` encoded. Raises ValueError for anything else."""
        first, index, size = text.split(" ")
        return cls(record.name(first), record.count(index), record.count(size))


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
    #: Its place among the jobs of the same call; None if it is the only one.
    group: Group | None = None
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
    #: How long the load of the checkpoint took for which the job waited before its first start, in ms; None: for none.
    load_ms: int | None = None
    #: Tokens of the prompt whose keys and values the last attempt found in its worker's cache; None until the end.
    cached_tokens: int | None = None
    #: Calls of the calculator in the answer, in order. Their tokens are in the log, and are no part of the text.
    tool_calls: tuple[ToolCall, ...] = ()
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
    def from_hash(cls, job_id: str, fields: Mapping[bytes, bytes], position: int | None = None) -> Job:
        """The job in the reply of HGETALL. Raises RecordError if the record is damaged."""
        read = RecordFields(job_id, fields)
        requested_at = read.optional("cancel_requested_at", record.time_ms)
        acked_at = read.optional("cancel_acked_at", record.time_ms)
        tokens_after = read.optional("cancel_tokens_after", record.integer)
        status = read.required("status", Status)
        job = cls(
            id=read.required("id", lambda text: _equal(text, job_id)),
            owner=read.required("owner", str),
            version=read.required("version", record.count),
            status=status,
            checkpoint=read.required("checkpoint", record.name),
            digest=read.required("digest", str),
            generation=read.required("input", Generation.from_json),
            priority=read.required("priority", record.priority),
            limits=TimeLimits(
                queue_timeout_ms=read.optional("queue_timeout_ms", record.duration_ms),
                run_timeout_ms=read.optional("run_timeout_ms", record.duration_ms),
                deadline_ms=read.optional("deadline_ms", record.duration_ms),
            ),
            group=read.optional("group", Group.from_text),
            retry_of=read.optional("retry_of", record.name),
            created_at=read.required("created_at", record.time_ms),
            deadline_at=read.optional("deadline_at", record.time_ms),
            started_at=read.optional("started_at", record.time_ms),
            first_token_at=read.optional("first_token_at", record.time_ms),
            finished_at=read.optional("finished_at", record.time_ms),
            expires_at=read.optional("expires_at", record.time_ms),
            result_ttl_ms=read.required("result_ttl_ms", record.duration_ms),
            attempt=read.required("attempt", record.count),
            losses=read.required("losses", record.count),
            losses_in_a_row=read.required("losses_in_a_row", record.count),
            resumed_tokens=read.required("resumed_tokens", record.count),
            worker=read.optional("worker", record.name),
            prompt_tokens=read.optional("prompt_tokens", record.count),
            load_ms=read.optional("load_ms", record.duration_ms),
            cached_tokens=read.optional("cached_tokens", record.count),
            tool_calls=read.optional("tool_calls", tool_calls_from_json) or (),
            tokens=read.required("tokens", record.count),
            completion=read.optional("completion", str),
            finish_reason=read.optional("finish_reason", FinishReason),
            error=read.optional("error", JobError.from_json),
            warnings=read.required("warnings", record.json_texts),
            cancellation=None if requested_at is None else Cancellation(requested_at, acked_at, tokens_after),
            metadata=read.required("metadata", record.json_text_map),
            position=position,
        )
        ended = isinstance(status, Status) and status.terminal
        read.require(ended, "finished_at", "expires_at", "finish_reason", "completion")
        read.require(status in (Status.FAILED, Status.EXPIRED), "error")
        read.check()
        return job


def _equal(text: str, expected: str) -> str:
    if text != expected:
        raise ValueError("another id")
    return text
