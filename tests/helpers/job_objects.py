"""Jobs in several states, and their JSON as the API returns it, for tests of the client."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from api.jobs.job_view import job_response
from tasks.generation import FinishReason
from tasks.job import Job, Status, TimeLimits
from tasks.token_log import Entry, TokenLog
from tests.helpers.requests import make_generation

JOB_ID = "job_01JZ8K6T4V9QABCDEFGHJKMNPQ"

QUEUED = Job(
    id=JOB_ID,
    owner="anonymous",
    version=1,
    status=Status.QUEUED,
    checkpoint="step_002920",
    digest="d" * 64,
    generation=make_generation(prompt="1+1=", max_tokens=8, temperature=0.0, seed=7),
    priority=5,
    limits=TimeLimits(),
    retry_of=None,
    created_at=1_800_000_000_000,
    deadline_at=None,
    started_at=None,
    first_token_at=None,
    finished_at=None,
    expires_at=None,
    result_ttl_ms=86_400_000,
    attempt=0,
    losses=0,
    losses_in_a_row=0,
    resumed_tokens=0,
    worker=None,
    prompt_tokens=None,
    tokens=0,
    completion=None,
    finish_reason=None,
    error=None,
    warnings=(),
    cancellation=None,
    metadata={"run": "7"},
    position=3,
)
RUNNING = replace(
    QUEUED,
    version=4,
    status=Status.RUNNING,
    started_at=1_800_000_000_100,
    attempt=1,
    worker="w@host",
    tokens=1,
    position=None,
)
SUCCEEDED = replace(
    RUNNING,
    version=6,
    status=Status.SUCCEEDED,
    first_token_at=1_800_000_000_200,
    finished_at=1_800_000_001_200,
    expires_at=1_800_086_401_200,
    prompt_tokens=5,
    tokens=2,
    completion="2\n",
    finish_reason=FinishReason.NEWLINE,
)


def job_object(job: Job, **changes: Any) -> dict[str, Any]:
    """A job as the API returns it. `changes` replace fields of the record."""
    log = TokenLog((Entry(after=1, k=0, token_ids=(2,), pieces=("2",)),))
    text: dict[str, Any] = json.loads(job_response(replace(job, **changes), log=log).model_dump_json())
    return text
