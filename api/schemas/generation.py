"""Bodies of a generation: what `POST /generate` takes and gives, and what `/v1/jobs` takes beyond that."""

from __future__ import annotations

from typing import Annotated

from pydantic import ConfigDict, Field, StringConstraints

from api.schemas.base import Model
from api.schemas.sampling import in_request, sampling_of
from tasks.sampling_params import SamplingParams

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

TimeLimit = Annotated[float | None, Field(gt=0, le=MAX_TIME_LIMIT_S)]
MetadataName = Annotated[str, StringConstraints(min_length=1, max_length=MAX_METADATA_NAME)]
MetadataValue = Annotated[str, StringConstraints(max_length=MAX_METADATA_VALUE)]


@in_request
class SampledRequest(Model):
    """A prompt and how to continue it."""

    prompt: str = Field(min_length=1, description="Text to continue.", examples=["123+456="])

    @property
    def sampling(self) -> SamplingParams:
        """The sampling fields; the seed may be missing."""
        return sampling_of(self)


class GenerateRequest(SampledRequest):
    """What to continue, and how."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"prompt": "123+456=", "max_tokens": 20, "temperature": 0.0}]}
    )

    model: str | None = Field(
        None,
        min_length=1,
        max_length=MAX_MODEL_NAME,
        description="Checkpoint to use. null: the default, or the only one served.",
    )


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
