"""Bodies and answers, as pydantic models: they validate what comes in and document what goes out."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PlainSerializer, StringConstraints, WithJsonSchema

from tasks.generation import MAX_STOP_CHARACTERS, MAX_STOPS, MAX_TEMPERATURE, MAX_TOKENS_LIMIT, SEED_BITS
from tasks.job import FinishReason, Status
from tasks.worker_info import WorkerState

#: Pairs of a job's metadata, and the longest name and value in characters.
MAX_METADATA = 16
MAX_METADATA_NAME = 64
MAX_METADATA_VALUE = 512
#: How long a caller may ask for a finished job to be kept, in seconds: a minute to a week.
MIN_RESULT_TTL_S = 60
MAX_RESULT_TTL_S = 604_800
#: Longest limit in time that a caller may set, in seconds: a week.
MAX_TIME_LIMIT_S = 604_800
#: Longest name of a checkpoint, which is a folder's.
MAX_MODEL_NAME = 255
#: Jobs of one page of the list.
DEFAULT_PAGE = 20
MAX_PAGE = 100


def _rfc3339(time: datetime) -> str:
    return time.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


#: A time in UTC with milliseconds, as `2026-01-02T03:04:05.678Z`.
Moment = Annotated[
    datetime,
    PlainSerializer(_rfc3339, when_used="json"),
    WithJsonSchema({"type": "string", "format": "date-time"}, mode="serialization"),
]
TimeLimit = Annotated[float | None, Field(gt=0, le=MAX_TIME_LIMIT_S)]
StopText = Annotated[str, StringConstraints(min_length=1, max_length=MAX_STOP_CHARACTERS)]
MetadataName = Annotated[str, StringConstraints(min_length=1, max_length=MAX_METADATA_NAME)]
MetadataValue = Annotated[str, StringConstraints(max_length=MAX_METADATA_VALUE)]


class Model(BaseModel):
    """Base of all: names that begin with `model` are ours, too."""

    model_config = ConfigDict(protected_namespaces=(), allow_inf_nan=False)


class GenerateRequest(Model):
    """What to continue, and how."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"prompt": "123+456=", "max_tokens": 20, "temperature": 0.0}]}
    )

    prompt: str = Field(min_length=1, description="Text to continue.", examples=["123+456="])
    max_tokens: int = Field(
        100, ge=1, le=MAX_TOKENS_LIMIT, description="Most tokens to generate; cut to what the context has room for."
    )
    temperature: float = Field(
        0.8, ge=0.0, le=MAX_TEMPERATURE, description="0: always the likeliest token. Higher: more varied."
    )
    top_k: int | None = Field(
        None, ge=1, description="Sample from the k likeliest tokens only; at most the vocabulary size. null: from all."
    )
    stop_on_newline: bool = Field(False, description="End after the first newline, which is kept.")
    model: str | None = Field(
        None,
        min_length=1,
        max_length=MAX_MODEL_NAME,
        description="Checkpoint to use. null: the default, or the only one served.",
    )
    top_p: float | None = Field(
        None, gt=0.0, le=1.0, description="Sample from the likeliest tokens that together have this probability."
    )
    seed: int | None = Field(
        None, ge=0, lt=1 << SEED_BITS, description="Repeats the draws of another run. null: a fresh one is drawn."
    )
    stop: list[StopText] | None = Field(
        None, max_length=MAX_STOPS, description="Texts that end the answer; it is cut in front of the first of them."
    )
    ignore_eos: bool = Field(False, description="Go on where the model would end the text.")


class JobRequest(GenerateRequest):
    """A generation to be queued. Unknown fields are refused, so that a misspelt one is noticed."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [{"prompt": "123+456=", "max_tokens": 20, "temperature": 0.0, "metadata": {"run": "7"}}]
        },
    )

    priority: int = Field(5, ge=0, le=9, description="0 is served first, 9 last.")
    metadata: dict[MetadataName, MetadataValue] = Field(
        default_factory=dict, max_length=MAX_METADATA, description="Texts of your own, given back with the job."
    )
    result_ttl_s: int | None = Field(
        None,
        ge=MIN_RESULT_TTL_S,
        le=MAX_RESULT_TTL_S,
        description="How long the finished job is kept, in seconds. null: the server's default.",
    )
    wait_for_worker: bool = Field(
        False, description="Accept the job even if no worker serves the checkpoint now; it waits until one does."
    )
    queue_timeout_s: TimeLimit = Field(
        None, description="If no worker has taken the job up after so many seconds, it expires. null: it waits."
    )
    run_timeout_s: TimeLimit = Field(
        None,
        description="After so many seconds of running, all attempts together, it fails and keeps its text so far.",
    )
    deadline_s: TimeLimit = Field(
        None,
        description="So many seconds after its submission it is over: expired if nobody has begun it, else failed, "
        "with its text so far.",
    )
    max_queue_position: int | None = Field(
        None, ge=0, le=10**9, description="Refuse the job (429) if more jobs than this would be ahead of it."
    )


class GenerateResponse(Model):
    """The guide's answer."""

    prompt: str = Field(description="The prompt as it was given.")
    generated_text: str = Field(description="The prompt and its continuation.")
    tokens_generated: int = Field(description="Tokens of the continuation.")
    model: str = Field(description="Checkpoint that generated it.")


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


class HealthResponse(Model):
    """The guide's health check."""

    status: Literal["ok", "error"] = Field(description="`ok` while a worker has a model loaded.")
    model_loaded: bool
    checkpoint: str = Field(description="Name of the checkpoint; `unknown` where there is none.")


class InfoResponse(Model):
    """The guide's model information."""

    checkpoint: str
    step: int | None = Field(description="Training step; null where the checkpoint does not tell.")
    val_loss: float | None = Field(
        description="Validation loss in nats per token; null where the checkpoint has none, or none that is finite."
    )
    model_layers: int
    model_dim: int
    vocab_size: int


class RootResponse(Model):
    """The guide's overview."""

    service: str
    version: str
    checkpoint: str
    status: Literal["running", "loading"]
    endpoints: dict[str, str]


class JobInput(Model):
    """The validated request."""

    prompt: str
    max_tokens: int
    temperature: float
    top_k: int | None
    top_p: float | None
    stop_on_newline: bool
    stop: list[str]
    ignore_eos: bool
    seed: int = Field(description="The given seed, or the one that was drawn: with it the run can be repeated.")


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


class StatusEvent(Model):
    """Data of a stream's `status` event."""

    status: Status
    attempt: int
    worker: str | None = Field(description="Who runs it; null while it waits.")


class TokenEvent(Model):
    """Data of a stream's `token` event."""

    offset: int = Field(description="Tokens in front of these.")
    count: int = Field(description="New tokens; 0 for a last piece of text that belongs to none.")
    text: str


class AttemptEvent(Model):
    """Data of a stream's `attempt` event: another worker goes on."""

    attempt: int
    resumed_from: int = Field(description="Tokens that it took over.")


class WorkerResponse(Model):
    """A live worker."""

    name: str
    model: str
    state: WorkerState
    device: str
    host: str
    slots: int = Field(description="Jobs that it decodes at once.")
    running: int
    kv_tokens: int = Field(description="Size of its KV cache in tokens.")
    kv_tokens_free: int
    tokens_per_s: float
    started_at: Moment
    heartbeat_at: Moment


class WorkerList(Model):
    """The live workers."""

    object: Literal["list"] = "list"
    data: list[WorkerResponse]


class Liveness(Model):
    """The process runs."""

    status: Literal["live"] = "live"


class Readiness(Model):
    """Whether a request would be served now."""

    state: Literal["READY", "BUSY"] = Field(description="BUSY: all slots are taken, new jobs wait.")
    workers: int
    slots: int
    running: int


class LegacyFieldError(Model):
    """One wrong field, as FastAPI tells it."""

    type: str
    loc: list[str | int]
    msg: str
    input: Any = None
    ctx: dict[str, Any] | None = None


class LegacyError(Model):
    """An error on the guide's routes."""

    detail: str | list[LegacyFieldError]
    job_id: str | None = Field(None, description="The job that goes on, or that failed.")
    job_url: str | None = None


class ProblemFieldError(Model):
    """One wrong part of a request: a JSON pointer into the body, or a parameter's or header's name."""

    detail: str
    type: str
    pointer: str | None = None
    parameter: str | None = None
    header: str | None = None


class Problem(Model):
    """Problem details (RFC 9457)."""

    model_config = ConfigDict(
        extra="allow",
        json_schema_extra={
            "examples": [
                {
                    "type": "urn:celeriac:problem:not_found",
                    "title": "Not found",
                    "status": 404,
                    "detail": "There is no job job_01JZ8K6T4V9QABCDEFGHJKMNPQ: it never was, or its time is over.",
                    "instance": "/v1/jobs/job_01JZ8K6T4V9QABCDEFGHJKMNPQ",
                    "code": "not_found",
                    "retryable": False,
                }
            ]
        },
    )

    type: str
    title: str
    status: int
    detail: str
    instance: str
    code: str
    retryable: bool
    errors: list[ProblemFieldError] | None = None
    job_id: str | None = None
    job_url: str | None = None
