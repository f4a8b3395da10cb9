"""Bodies about jobs: the job object with its parts, its text alone, and lists of jobs."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from api.schemas.base import Model, Moment
from api.schemas.generation import GenerateResponse
from api.schemas.sampling import in_job
from tasks.generation import FinishReason
from tasks.job import Status

#: Jobs of one page of the list.
DEFAULT_PAGE = 20
MAX_PAGE = 100


class Usage(Model):
    """Tokens of a job."""

    prompt_tokens: int | None = Field(description="null until a worker has counted them.")
    completion_tokens: int
    total_tokens: int | None


class JobResult(GenerateResponse):
    """A finished job's text."""

    finish_reason: FinishReason
    usage: Usage
    job_id: str


@in_job
class JobInput(Model):
    """The validated request."""

    prompt: str


class EtaFinish(Model):
    """Seconds until a job is over: half of the jobs, and nine of ten, take no longer than estimated."""

    p50: float
    p90: float


class JobEta(Model):
    """What can be told of a job's future. Times are in seconds from `as_of`; null where nothing is known yet."""

    position: int | None = Field(description="Jobs ahead of this one (0: next); null unless queued.")
    tokens_ahead: int | None = Field(description="Tokens that those jobs will probably generate; null unless queued.")
    eta_start_s: float | None = Field(description="Until it starts; null unless queued.")
    eta_finish_s: EtaFinish | None = Field(description="Until it is over; null once it is.")
    as_of: Moment | None = Field(description="When this was estimated.")


class JobQueue(JobEta):
    """The job's place in the queue, and when it will probably be over."""

    priority: int


class JobProgress(Model):
    """How far the job is."""

    tokens_generated: int
    max_tokens: int


class JobOutput(Model):
    """The text so far. In lists the text of a running job is left out (null)."""

    generated_text: str | None
    completion: str | None
    tokens_generated: int
    finish_reason: FinishReason | None


class JobTimings(Model):
    """Durations in seconds; null until known."""

    queue_s: float | None = Field(description="From submission to the first start.")
    ttft_s: float | None = Field(description="From the start to the first token.")
    decode_s: float | None = Field(description="From the first token to the end.")
    tokens_per_s: float | None = Field(description="Tokens behind the first one, by decode_s.")
    total_s: float | None = Field(description="From submission to the end.")


class JobFailure(Model):
    """Why a job failed."""

    code: str
    message: str
    retryable: bool


class JobCancel(Model):
    """How quickly a cancel took effect."""

    requested_at: Moment
    acked_at: Moment | None
    latency_ms: int | None
    tokens_after: int | None = Field(description="Tokens decoded after the request.")


class JobLimits(Model):
    """How long the job may take, in seconds; null: as long as it takes."""

    queue_timeout_s: float | None
    run_timeout_s: float | None
    deadline_s: float | None


class JobUrls(Model):
    """Where to go from here."""

    self: str
    result: str
    stream: str
    cancel: str
    retry: str


class JobResponse(Model):
    """A job."""

    id: str
    object: Literal["job"] = "job"
    version: int = Field(description="Rises at every change; also the ETag.")
    status: Status
    model: str
    created_at: Moment
    started_at: Moment | None
    finished_at: Moment | None
    deadline_at: Moment | None = Field(description="When `deadline_s` is over.")
    expires_at: Moment | None = Field(description="When the finished job is forgotten.")
    input: JobInput
    limits: JobLimits
    queue: JobQueue
    progress: JobProgress
    output: JobOutput
    usage: Usage
    timings: JobTimings
    attempt: int = Field(description="How many times a worker has taken the job up.")
    losses: int = Field(description="Workers and engines that were lost while they ran the job.")
    resumed_tokens: int = Field(description="Tokens that the present attempt took over from earlier ones.")
    worker: str | None
    warnings: list[str]
    error: JobFailure | None
    cancel_requested: bool
    cancel: JobCancel | None
    retry_of: str | None = Field(description="The job that this one repeats.")
    metadata: dict[str, str]
    urls: JobUrls


class JobList(Model):
    """A page of jobs, newest first."""

    object: Literal["list"] = "list"
    data: list[JobResponse]
    next_cursor: str | None = Field(description="Give it as `cursor` for the next page; null on the last one.")
