"""Bodies of errors in OpenAI's format."""

from __future__ import annotations

from pydantic import ConfigDict, Field

from api.schemas.base import Model


class OpenAiErrorDetail(Model):
    """What is wrong."""

    message: str
    type: str = Field(description="`invalid_request_error`, `rate_limit_error` or `server_error`, for example.")
    param: str | None = Field(description="The wrong field, such as `stop` or `messages.0.role`; null: none.")
    code: str | None


class OpenAiErrorJob(Model):
    """The job that the error is about."""

    job_id: str
    job_url: str | None = None


class OpenAiError(Model):
    """An error in OpenAI's format."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "error": {
                        "message": "n: Input should be less than or equal to 128",
                        "type": "invalid_request_error",
                        "param": "n",
                        "code": "less_than_equal",
                    }
                }
            ]
        }
    )

    error: OpenAiErrorDetail
    celeriac: OpenAiErrorJob | None = Field(None, description="Only if the call has a job.")
