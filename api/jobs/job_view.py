"""Builds the job object of the API, and its parts, from a job record."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime

from api.jobs.queue_load import QueueSnapshot
from api.schemas.generation import ChatMessage, GenerateResponse
from api.schemas.jobs import (
    EtaFinish,
    JobCancel,
    JobEta,
    JobFailure,
    JobGroup,
    JobInput,
    JobLimits,
    JobOutput,
    JobProgress,
    JobQueue,
    JobResponse,
    JobResult,
    JobTimings,
    JobToolCall,
    JobUrls,
    Logprobs,
    TokenLogprob,
    Usage,
)
from tasks import logprobs
from tasks.estimate import Estimate
from tasks.job import Job, Status
from tasks.token_log import TokenLog


def job_url(prefix: str, job_id: str) -> str:
    """The path of a job. `prefix` is the path prefix that a proxy adds."""
    return f"{prefix}/v1/jobs/{job_id}"


def job_response(
    job: Job, *, prefix: str = "", log: TokenLog | None = None, queue: QueueSnapshot | None = None
) -> JobResponse:
    """The job object.

    `log` is the job's token log, for the text of a job that is not over and for log-probabilities. `queue` is a
    snapshot of its queue, for the estimates. What needs one that is not given is null.
    """
    partial = None if log is None else log.text
    completion = partial if job.completion is None else job.completion
    sampling = job.generation.sampling
    url = job_url(prefix, job.id)
    return JobResponse(
        id=job.id,
        version=job.version,
        status=job.status,
        model=job.checkpoint,
        created_at=moment(job.created_at),
        started_at=maybe_moment(job.started_at),
        finished_at=maybe_moment(job.finished_at),
        deadline_at=maybe_moment(job.deadline_at),
        expires_at=maybe_moment(job.expires_at),
        input=_input(job),
        limits=JobLimits(
            queue_timeout_s=_maybe_seconds(job.limits.queue_timeout_ms),
            run_timeout_s=_maybe_seconds(job.limits.run_timeout_ms),
            deadline_s=_maybe_seconds(job.limits.deadline_ms),
        ),
        queue=_queue(job, queue),
        progress=JobProgress(tokens_generated=job.tokens, max_tokens=sampling.max_tokens),
        output=JobOutput(
            generated_text=None if completion is None else job.generation.prompt + completion,
            completion=completion,
            tokens_generated=job.tokens,
            finish_reason=job.finish_reason,
            tool_calls=[JobToolCall(input=call.input, output=call.output) for call in job.tool_calls],
            logprobs=None if log is None else _logprobs(b"".join(log.token_logprobs), sampling.logprobs),
            prompt_logprobs=None if log is None else _logprobs(log.prompt_logprobs, sampling.prompt_logprobs),
        ),
        usage=_usage(job),
        timings=job_timings(job),
        attempt=job.attempt,
        losses=job.losses,
        resumed_tokens=job.resumed_tokens,
        worker=job.worker,
        warnings=list(job.warnings),
        error=None
        if job.error is None
        else JobFailure(code=job.error.code.value, message=job.error.message, retryable=job.error.retryable),
        cancel_requested=job.cancellation is not None,
        cancel=_cancel(job),
        group=None if job.group is None else JobGroup(**asdict(job.group)),
        retry_of=job.retry_of,
        metadata=dict(job.metadata),
        urls=JobUrls(
            self=url, result=f"{url}/result", stream=f"{url}/stream", cancel=f"{url}/cancel", retry=f"{url}/retry"
        ),
    )


def generate_response(job: Job) -> GenerateResponse:
    """The response body of the guide, for a job that succeeded."""
    return GenerateResponse(
        prompt=job.generation.prompt,
        generated_text=job.generation.prompt + (job.completion or ""),
        tokens_generated=job.tokens,
        model=job.checkpoint,
    )


def job_result(job: Job) -> JobResult:
    """The body of `GET /v1/jobs/{id}/result`, for a job that succeeded."""
    if job.finish_reason is None:
        raise ValueError(f"{job.id} has not succeeded")
    return JobResult(
        **generate_response(job).model_dump(), finish_reason=job.finish_reason, usage=_usage(job), job_id=job.id
    )


def job_timings(job: Job) -> JobTimings:
    """The durations of a job in seconds; None if not known yet."""
    decode_s = _seconds(job.first_token_at, job.finished_at)
    return JobTimings(
        queue_s=_seconds(job.created_at, job.started_at),
        load_s=None if job.started_at is None else (job.load_ms or 0) / 1000,
        ttft_s=_seconds(job.started_at, job.first_token_at),
        decode_s=decode_s,
        tokens_per_s=round((job.tokens - 1) / decode_s, 1) if decode_s and job.tokens > 1 else None,
        total_s=_seconds(job.created_at, job.finished_at),
    )


def server_timing(job: Job) -> str:
    """The value of `Server-Timing`: the duration of each phase that is known, in milliseconds."""
    timings = job_timings(job)
    load_s = timings.load_s or None
    phases = (("queue", timings.queue_s), ("load", load_s), ("ttft", timings.ttft_s), ("decode", timings.decode_s))
    return ", ".join(f"{name};dur={seconds * 1000:.0f}" for name, seconds in phases if seconds is not None)


def moment(ms: int) -> datetime:
    """A time of the record (ms since the epoch) as a datetime in UTC."""
    return datetime.fromtimestamp(ms / 1000, UTC)


def maybe_moment(ms: int | None) -> datetime | None:
    """As `moment`; None for None."""
    return None if ms is None else moment(ms)


def job_eta(estimate: Estimate, *, position: int | None, as_of: datetime) -> JobEta:
    """The estimate as the API has it. `position` is None for a running job."""
    queued = position is not None
    finish = estimate.finish
    return JobEta(
        position=position,
        tokens_ahead=estimate.tokens_ahead if queued else None,
        eta_start_s=None if estimate.start_s is None or not queued else round(estimate.start_s, 3),
        eta_finish_s=None if finish is None else EtaFinish(p50=round(finish.p50, 3), p90=round(finish.p90, 3)),
        as_of=as_of,
    )


def _queue(job: Job, queue: QueueSnapshot | None) -> JobQueue:
    position = job.position if job.status is Status.QUEUED else None
    if job.status.terminal or queue is None:
        unknown: dict[str, None] = dict.fromkeys(("tokens_ahead", "eta_start_s", "eta_finish_s", "as_of"))
        return JobQueue(priority=job.priority, position=position, **unknown)
    eta = job_eta(queue.estimate(job), position=position, as_of=queue.as_of)
    return JobQueue(priority=job.priority, **dict(eta))


def _maybe_seconds(ms: int | None) -> float | None:
    return None if ms is None else ms / 1000


def _seconds(start: int | None, end: int | None) -> float | None:
    return None if start is None or end is None else (end - start) / 1000


def _usage(job: Job) -> Usage:
    total = None if job.prompt_tokens is None else job.prompt_tokens + job.tokens
    return Usage(
        prompt_tokens=job.prompt_tokens,
        completion_tokens=job.tokens,
        total_tokens=total,
        cached_tokens=job.cached_tokens,
    )


def _input(job: Job) -> JobInput:
    generation = job.generation
    return JobInput(
        prompt=generation.prompt,
        prompt_token_ids=None if generation.prompt_ids is None else list(generation.prompt_ids),
        messages=None
        if generation.messages is None
        else [ChatMessage(role=one.role, content=one.content) for one in generation.messages],
        tools=generation.tools,
        **asdict(generation.sampling),
    )


def token_logprobs(packed: bytes, alternatives: int) -> list[Logprobs]:
    """Packed log-probabilities as the API has them. A part of a record at the end, which is damage, is left out."""
    size = logprobs.record_bytes(alternatives)
    packed = packed[: len(packed) // size * size]
    return [
        Logprobs(
            **one.chosen._asdict(),
            top=[TokenLogprob(**alternative._asdict()) for alternative in one.top],
        )
        for one in logprobs.unpack(packed, alternatives)
    ]


def _logprobs(packed: bytes, alternatives: int | None) -> list[Logprobs] | None:
    return None if alternatives is None else token_logprobs(packed, alternatives)


def _cancel(job: Job) -> JobCancel | None:
    if job.cancellation is None:
        return None
    return JobCancel(
        requested_at=moment(job.cancellation.requested_at),
        acked_at=maybe_moment(job.cancellation.acked_at),
        latency_ms=job.cancellation.latency_ms,
        tokens_after=job.cancellation.tokens_after,
    )
