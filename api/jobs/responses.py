"""Responses and errors about jobs, shared by all routes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus

from fastapi import Request, Response
from pydantic import BaseModel
from redis.exceptions import RedisError

from api.http.conditional import not_modified, weak_etag
from api.http.problems import RETRY_SOON_S, ApiError, Code, FieldError, presentable
from api.http.request_headers import Preferences
from api.jobs.job_view import generate_response, job_response, job_url, server_timing
from api.jobs.queue_load import QueueLoads, retry_after_s
from api.schemas.jobs import JobResponse
from tasks.job import ErrorCode, Job, JobError, Status
from tasks.store.job_store import JobStore
from tasks.store.new_job import Submitted
from tasks.token_log import TokenLog

#: Errors in the prompt that only the worker can find.
_PROMPT_CODES = (Code.INVALID_REQUEST, Code.PROMPT_TOO_LONG)


def json_response(body: BaseModel, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """`body` as JSON."""
    # An HTTPStatus would appear in the log by its name.
    return Response(body.model_dump_json(), int(status), headers, media_type="application/json")


def job_headers(job_id: str, prefix: str) -> dict[str, str]:
    """Headers that name the job of the response."""
    return {"Location": job_url(prefix, job_id), "X-Job-Id": job_id}


def replayed_headers(replayed: bool) -> dict[str, str]:
    """The header of a response whose job was created by an earlier request with the same idempotency key."""
    return {"Idempotency-Replayed": "true"} if replayed else {}


def preference_headers(preferences: Preferences, *, waited_s: float | None, answered_async: bool) -> dict[str, str]:
    """Headers of a response that depends on `Prefer`."""
    applied = preferences.applied(waited_s=waited_s, answered_async=answered_async)
    return {"Vary": "Prefer", **({"Preference-Applied": applied} if applied else {})}


@dataclass(frozen=True, slots=True)
class JobResponses:
    """Responses with a job object. One for all requests of this process. Each method raises RedisError."""

    store: JobStore
    queue_loads: QueueLoads

    async def job(self, job: Job, prefix: str, headers: Mapping[str, str] | None = None) -> Response:
        """200 with the job object. If the job is not over, it has the text so far and an estimate."""
        return json_response(await self._job_object(job, prefix), HTTPStatus.OK, headers)

    async def current(self, request: Request, job: Job, prefix: str) -> Response:
        """200 as `job`, with an `ETag`; 304 if the client has this representation already."""
        body = await self._job_object(job, prefix)
        # The time of an estimate is no news. Everything else is, also what changes without a new version of the job:
        # its position, its estimates, and the prefix of its URLs.
        queue = body.queue.model_copy(update={"as_of": None})
        etag = weak_etag(body.model_copy(update={"queue": queue}).model_dump_json().encode())
        return not_modified(request, json_response(body, HTTPStatus.OK, {"ETag": etag}))

    async def accepted(self, job: Job, prefix: str, headers: Mapping[str, str]) -> Response:
        """202 with the job object: the job is not over. `Retry-After` is the estimated time until it is."""
        body = await self._job_object(job, prefix)
        finish = body.queue.eta_finish_s
        retry_after = str(retry_after_s(None if finish is None else finish.p50))
        return json_response(body, HTTPStatus.ACCEPTED, {**headers, "Retry-After": retry_after})

    async def _job_object(self, job: Job, prefix: str) -> JobResponse:
        sampling = job.generation.sampling
        asks_for_logprobs = sampling.logprobs is not None or sampling.prompt_logprobs is not None
        if job.status.terminal:
            log = TokenLog(tuple(await self.store.log(job.id))) if asks_for_logprobs else None
            return job_response(job, prefix=prefix, log=log)
        queue = await self.queue_loads.snapshot(job.checkpoint)
        return job_response(job, prefix=prefix, log=await _log_so_far(self.store, job), queue=queue)


def generated(job: Job, headers: Mapping[str, str]) -> Response:
    """200 with the guide's body. Timings and warnings, which it has no fields for, are in headers."""
    more = {"Server-Timing": server_timing(job)}
    if job.warnings:
        # Header values are ASCII; JSON escapes everything else.
        more["X-Job-Warnings"] = json.dumps(job.warnings)
    return json_response(generate_response(job), 200, {**headers, **more})


def unsuccessful(job: Job, prefix: str) -> ApiError:
    """The error of a synchronous call whose job ended without success."""
    if job.error is not None:
        return _failed(job, job.error, prefix)
    return _job_error(Code.CANCELLED, "The job was cancelled.", job.id, prefix)


def wait_is_over(job_id: str, prefix: str, why: str) -> ApiError:
    """The error of a synchronous call that ends before its job, and accepts no answer but the text.

    `why` is a sentence.
    """
    return _job_error(
        Code.WAIT_TIMEOUT,
        f"{why} The job continues: read it at {job_url(prefix, job_id)}.",
        job_id,
        prefix,
        retry_after_s=RETRY_SOON_S,
    )


def no_result(job: Job, prefix: str) -> ApiError:
    """The error of `GET /v1/jobs/{id}/result` for a job that ended without success. It includes the text so far."""
    url = job_url(prefix, job.id)
    output = job_response(job, prefix=prefix).output.model_dump(mode="json")
    extra = {"job_id": job.id, "job_url": url, "output": output}
    if job.error is None:
        return ApiError(Code.CANCELLED, "The job was cancelled.", extra=extra)
    status = HTTPStatus.GONE if job.status is Status.EXPIRED else HTTPStatus.CONFLICT
    return ApiError(code_of(job.error.code), job.error.message, extra=extra, status=status)


def is_retryable(job: Job) -> bool:
    """Whether the request of a job may be repeated: it ended without success, and its record is not damaged."""
    if not job.status.terminal or job.status is Status.SUCCEEDED:
        return False
    return job.error is None or job.error.code is not ErrorCode.RECORD_DAMAGED


def not_retryable(job: Job) -> ApiError:
    """The error of `POST /v1/jobs/{id}/retry` for a job that is not over, has succeeded, or has a damaged record."""
    if job.error is not None and job.error.code is ErrorCode.RECORD_DAMAGED:
        detail = f"{job.id} cannot be repeated, because its record was damaged. Send the request again as a new job."
        return ApiError(Code.NOT_RETRYABLE, detail, extra={"job_id": job.id})
    state = "has succeeded: submit its request again" if job.status.terminal else f"is {job.status}: cancel it first"
    return ApiError(Code.NOT_RETRYABLE, f"{job.id} {state}, if you want another one.", extra={"job_id": job.id})


async def read_accepted(store: JobStore, submitted: Submitted, prefix: str) -> Job:
    """Read a job that this request submitted or found.

    Raises ApiError if Redis is away now, or if the job no longer exists; the error names the job.
    """
    job_id = submitted.job_id
    try:
        job = await store.get(job_id)
    except RedisError as error:
        raise accepted_without_redis(job_id, prefix) from error
    if job is None:
        raise await vanished(store, job_id, ended=submitted.replayed)
    return job


def accepted_without_redis(job_id: str, prefix: str) -> ApiError:
    """The error of a request whose job was accepted and cannot be read, because Redis is away now."""
    return _job_error(
        Code.REDIS_UNAVAILABLE,
        f"The job was accepted, but Redis cannot be reached now. Read it at {job_url(prefix, job_id)}.",
        job_id,
        prefix,
        retry_after_s=RETRY_SOON_S,
    )


async def vanished(store: JobStore, job_id: str, *, ended: bool) -> ApiError:
    """The error for a job that was accepted and no longer exists. Raises RedisError.

    With `ended` the job had ended, so that its record may have expired.
    """
    if await store.was_deleted(job_id):
        return _deleted(job_id)
    if ended:
        return ApiError(Code.GONE, f"{job_id} has ended, and its result has expired.", extra={"job_id": job_id})
    return ApiError(
        Code.JOB_LOST,
        f"{job_id} was accepted, but is no longer in the queue: Redis has lost data. Send the request again.",
        extra={"job_id": job_id},
    )


async def missing(store: JobStore, job_id: str) -> ApiError:
    """The error for an id that has no job. Raises RedisError."""
    return _deleted(job_id) if await store.was_deleted(job_id) else no_such_job(job_id)


def no_such_job(job_id: str) -> ApiError:
    """The error for an id that no job ever had, or whose job has expired."""
    return ApiError(Code.NOT_FOUND, f"There is no job {presentable(job_id)}: it never existed, or it has expired.")


def code_of(error: ErrorCode) -> Code:
    """The API's code for the error of a failed job. The names are the same."""
    return Code(error.value)


def _deleted(job_id: str) -> ApiError:
    return ApiError(Code.GONE, f"{job_id} was deleted.", extra={"job_id": job_id})


async def _log_so_far(store: JobStore, job: Job) -> TokenLog:
    """The log of the tokens that `job` counts. It may have grown since the job was read."""
    if job.tokens == 0:
        return TokenLog(())
    return TokenLog(tuple(await store.log(job.id))).first(job.tokens)


def _failed(job: Job, error: JobError, prefix: str) -> ApiError:
    job_id, code = job.id, code_of(error.code)
    if code is Code.INTERNAL:
        return _job_error(code, f"Generation failed: {error.message}", job_id, prefix)
    if code in _PROMPT_CODES:
        field = "prompt" if job.generation.messages is None else "messages"
        in_prompt = FieldError(("body", field), error.message, code.value)
        return _job_error(code, error.message, job_id, prefix, errors=(in_prompt,))
    return _job_error(code, error.message, job_id, prefix)


def _job_error(
    code: Code,
    detail: str,
    job_id: str,
    prefix: str,
    *,
    errors: tuple[FieldError, ...] = (),
    retry_after_s: int | None = None,
) -> ApiError:
    return ApiError(
        code,
        detail,
        errors=errors,
        retry_after_s=retry_after_s,
        extra={"job_id": job_id, "job_url": job_url(prefix, job_id)},
        # The job was accepted: a client library that repeats the call automatically would only submit another job.
        headers={**job_headers(job_id, prefix), "X-Should-Retry": "false"},
    )
