"""Bodies about jobs: the job object and its parts, the result, and lists of jobs."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from api.schemas.base import Model, Moment
from api.schemas.generation import ChatMessage, GenerateResponse
from api.schemas.sampling import in_job
from tasks.generation import FinishReason
from tasks.job import Status

#: Jobs on one page of a list: the default and the maximum.
DEFAULT_PAGE = 20
MAX_PAGE = 100


class Usage(Model):
    """Token counts of a job."""

    prompt_tokens: int | None = Field(description="null until a worker has counted them.")
    completion_tokens: int
    total_tokens: int | None
    cached_tokens: int | None = Field(
        description="Tokens of the prompt that the worker had computed before. null until the job has ended."
    )


class JobResult(GenerateResponse):
    """The text of a job that succeeded."""

    finish_reason: FinishReason
    usage: Usage
    job_id: str


@in_job
class JobInput(Model):
    """The validated request, with defaults."""

    prompt: str = Field(description="Empty if the request gave token ids or messages.")
    prompt_token_ids: list[int] | None
    messages: list[ChatMessage] | None
    tools: bool | None


class EtaFinish(Model):
    """Estimated seconds until a job is over: half of the jobs take at most `p50`, nine of ten at most `p90`."""

    p50: float
    p90: float


class JobEta(Model):
    """Estimates for a job. Times are in seconds from `as_of`; null: not known yet."""

    position: int | None = Field(description="Jobs ahead of this one (0: next); null unless queued.")
    tokens_ahead: int | None = Field(description="Tokens that those jobs will probably generate; null unless queued.")
    eta_start_s: float | None = Field(description="Time until the job starts; null unless queued.")
    eta_finish_s: EtaFinish | None = Field(description="Time until the job is over; null if it is over.")
    as_of: Moment | None = Field(description="Time of the estimate.")


class JobQueue(JobEta):
    """The job's priority, position and estimates."""

    priority: int


class JobProgress(Model):
    """The progress of a job."""

    tokens_generated: int
    max_tokens: int


class JobToolCall(Model):
    """One use of the calculator."""

    input: str = Field(description="The expression.")
    output: str = Field(description="Its result; empty if there was none.")


class TokenLogprob(Model):
    """A token and the logarithm of its probability."""

    token_id: int
    logprob: float


class Logprobs(TokenLogprob):
    """A token of the text, and the most likely tokens at its place."""

    top: list[TokenLogprob] = Field(description="The most likely tokens, the first one first.")


class JobGroup(Model):
    """The place of a job among those of one call."""

    id: str = Field(description="Id of the first job.")
    index: int
    size: int


class JobOutput(Model):
    """The text so far. In lists the text of a running job is null."""

    generated_text: str | None
    completion: str | None
    tokens_generated: int
    finish_reason: FinishReason | None
    tool_calls: list[JobToolCall] = Field(
        description="Uses of the calculator, which are no part of the text. Empty until the job has ended."
    )
    logprobs: list[Logprobs] | None = Field(
        None, description="One for each token so far, if the request asked for them. null in lists."
    )
    prompt_logprobs: list[Logprobs] | None = Field(
        None, description="One for each token of the prompt after the first, if the request asked for them."
    )


class JobTimings(Model):
    """Durations in seconds; null until known."""

    queue_s: float | None = Field(description="From submission to the first start.")
    load_s: float | None = Field(
        description="How long the load of the checkpoint took, if the job waited for it; else 0. A part of queue_s, or "
        "more, if the load had begun before."
    )
    ttft_s: float | None = Field(description="From the start to the first token.")
    decode_s: float | None = Field(description="From the first token to the end.")
    tokens_per_s: float | None = Field(description="Tokens after the first one, divided by decode_s.")
    total_s: float | None = Field(description="From submission to the end.")


class JobFailure(Model):
    """Why a job failed."""

    code: str
    message: str
    retryable: bool


class JobCancel(Model):
    """A cancel request and when it took effect."""

    requested_at: Moment
    acked_at: Moment | None
    latency_ms: int | None
    tokens_after: int | None = Field(description="Tokens that were decoded after the request.")


class JobLimits(Model):
    """Time limits of the job in seconds; null: no limit."""

    queue_timeout_s: float | None
    run_timeout_s: float | None
    deadline_s: float | None


class JobUrls(Model):
    """URLs of the job."""

    self: str
    result: str
    stream: str
    cancel: str
    retry: str


class JobResponse(Model):
    """A job."""

    id: str
    object: Literal["job"] = "job"
    version: int = Field(description="Increases with every change of the job. A new position or estimate is none.")
    status: Status
    model: str
    created_at: Moment
    started_at: Moment | None
    finished_at: Moment | None
    deadline_at: Moment | None = Field(description="When the time of `deadline_s` is over.")
    expires_at: Moment | None = Field(description="When the finished job is deleted.")
    input: JobInput
    limits: JobLimits
    queue: JobQueue
    progress: JobProgress
    output: JobOutput
    usage: Usage
    timings: JobTimings
    attempt: int = Field(description="How many times a worker has claimed the job.")
    losses: int = Field(description="How many times a worker or an engine was lost while it ran the job.")
    resumed_tokens: int = Field(description="Tokens from earlier attempts with which the present attempt started.")
    worker: str | None
    warnings: list[str]
    error: JobFailure | None
    cancel_requested: bool
    cancel: JobCancel | None
    group: JobGroup | None = Field(description="null for a job that is the only one of its call.")
    retry_of: str | None = Field(description="The job that this one repeats.")
    metadata: dict[str, str]
    urls: JobUrls


class JobList(Model):
    """A page of jobs, newest first."""

    object: Literal["list"] = "list"
    data: list[JobResponse]
    next_cursor: str | None = Field(description="The `cursor` of the next page; null on the last page.")
