"""Bodies of errors: problem details, and the format of the guide's routes."""

from __future__ import annotations

from typing import Any

from pydantic import ConfigDict, Field

from api.schemas.base import Model


class LegacyFieldError(Model):
    """One wrong field, in FastAPI's format."""

    type: str
    loc: list[str | int]
    msg: str
    input: Any = None
    ctx: dict[str, Any] | None = None


class LegacyError(Model):
    """An error of the guide's routes."""

    detail: str | list[LegacyFieldError]
    job_id: str | None = Field(None, description="The job of this error, if there is one. It continues or has failed.")
    job_url: str | None = None


class ProblemFieldError(Model):
    """One wrong part of a request, with a JSON pointer into the body, or the name of a parameter or header."""

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
                    "detail": "There is no job job_01JZ8K6T4V9QABCDEFGHJKMNPQ: it never existed, or it has expired.",
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
