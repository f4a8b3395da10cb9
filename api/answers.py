"""Answers about jobs, as every route gives them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from http import HTTPStatus

from fastapi import Response
from pydantic import BaseModel
from redis.exceptions import RedisError

from api.job_view import generate_response, job_response, job_url, server_timing
from api.prefer import Preferences
from api.problems import RETRY_SOON_S, ApiError, Code, FieldError, code_of, presentable
from tasks.job import Job, JobError, Status
from tasks.job_store import JobStore
from tasks.token_log import TokenLog

#: Faults that lie in the prompt, which the worker alone could tell.
_PROMPT_CODES = (Code.INVALID_REQUEST, Code.PROMPT_TOO_LONG)


def json_answer(body: BaseModel, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """`body` as JSON."""
    return Response(body.model_dump_json(), status, headers, media_type="application/json")


def job_headers(job_id: str, prefix: str) -> dict[str, str]:
    """Headers of every answer that made or found a job."""
    return {"Location": job_url(prefix, job_id), "X-Job-Id": job_id}


def preference_headers(preferences: Preferences, *, waited_s: float | None, answered_async: bool) -> dict[str, str]:
    """Headers of an answer that depends on `Prefer`."""
    applied = preferences.applied(waited_s=waited_s, answered_async=answered_async)
    return {"Vary": "Prefer", **({"Preference-Applied": applied} if applied else {})}


async def job_answer(
    store: JobStore, job: Job, prefix: str, status: int, headers: Mapping[str, str] | None = None
) -> Response:
    """The job object, with the text so far where the job is not over. Raises RedisError."""
    partial = None if job.status.terminal else await _text_so_far(store, job)
    return json_answer(job_response(job, prefix=prefix, partial=partial), status, headers)


async def accepted(store: JobStore, job: Job, prefix: str, headers: Mapping[str, str]) -> Response:
    """202: the job is there, its end is not."""
    return await job_answer(store, job, prefix, 202, {**headers, "Retry-After": str(RETRY_SOON_S)})


def generated(job: Job, headers: Mapping[str, str]) -> Response:
    """200 with the guide's body. What it has no room for is in headers."""
    more = {"Server-Timing": server_timing(job)}
    if job.warnings:
        # Header values are ASCII; JSON escapes the rest.
        more["X-Job-Warnings"] = json.dumps(job.warnings)
    return json_answer(generate_response(job), 200, {**headers, **more})


def unsuccessful(job: Job, prefix: str) -> ApiError:
    """The error of a synchronous call whose job is over without success."""
    if job.error is not None:
        return _failed(job.error, job.id, prefix)
    if job.status is Status.CANCELLED:
        return _job_error(Code.CANCELLED, "The job was cancelled.", job.id, prefix)
    return _job_error(Code.DEADLINE_EXCEEDED, "The job's time was over before a worker took it up.", job.id, prefix)


def wait_is_over(job_id: str, prefix: str, waited_s: float) -> ApiError:
    """The error of a synchronous call whose caller agreed to no other answer than the text."""
    return _job_error(
        Code.WAIT_TIMEOUT,
        f"No answer within {waited_s:g} s. The job goes on: read it at {job_url(prefix, job_id)}.",
        job_id,
        prefix,
        retry_after_s=RETRY_SOON_S,
    )


def no_result(job: Job, prefix: str) -> ApiError:
    """The error of `GET /v1/jobs/{id}/result` for a job that is over without success. Its text so far goes along."""
    url = job_url(prefix, job.id)
    output = job_response(job, prefix=prefix).output.model_dump(mode="json")
    extra = {"job_id": job.id, "job_url": url, "output": output}
    if job.error is not None:
        return ApiError(code_of(job.error.code), job.error.message, extra=extra, status=HTTPStatus.CONFLICT)
    if job.status is Status.CANCELLED:
        return ApiError(Code.CANCELLED, "The job was cancelled.", extra=extra)
    return ApiError(Code.EXPIRED, "The job's time was over before a worker took it up.", extra=extra)


async def read_accepted(store: JobStore, job_id: str, prefix: str) -> Job:
    """A job that this request made or found. Raises ApiError where Redis went away just then: the job is there."""
    try:
        job = await store.get(job_id)
    except RedisError as error:
        raise _job_error(
            Code.REDIS_UNAVAILABLE,
            f"The job was accepted, but Redis cannot be reached now. Read it at {job_url(prefix, job_id)}.",
            job_id,
            prefix,
            retry_after_s=RETRY_SOON_S,
        ) from error
    if job is None:
        raise no_such_job(job_id)
    return job


def no_such_job(job_id: str) -> ApiError:
    """The error of an id that never was, or whose record is over."""
    return ApiError(Code.NOT_FOUND, f"There is no job {presentable(job_id)}: it never was, or its time is over.")


async def _text_so_far(store: JobStore, job: Job) -> str:
    """Text of the tokens that `job` counts; the log may have grown since it was read."""
    if job.tokens == 0:
        return ""
    log = TokenLog(tuple(await store.log(job.id)))
    return "".join(log.token_pieces[: job.tokens])


def _failed(error: JobError, job_id: str, prefix: str) -> ApiError:
    code = code_of(error.code)
    if code is Code.INTERNAL:
        return _job_error(code, f"Generation failed: {error.message}", job_id, prefix)
    if code in _PROMPT_CODES:
        wrong = FieldError(("body", "prompt"), error.message, code.value)
        return _job_error(code, error.message, job_id, prefix, errors=(wrong,))
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
        # The job was accepted: a client library that repeats the call by itself would only make another one.
        headers={**job_headers(job_id, prefix), "X-Should-Retry": "false"},
    )
