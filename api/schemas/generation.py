"""Bodies of requests that generate: `POST /generate`, and `POST /v1/jobs` with more options."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import ConfigDict, Field, StringConstraints, model_validator
from pydantic_core import PydanticCustomError

from api.schemas.base import Model
from api.schemas.sampling import in_request, sampling_of
from api.schemas.text import Text
from tasks.chat import Message
from tasks.generation import Generation
from tasks.sampling_params import SamplingParams

#: Most entries in a job's metadata, and the longest name and value in characters.
MAX_METADATA = 16
MAX_METADATA_NAME = 64
MAX_METADATA_VALUE = 512
#: Shortest and longest `result_ttl_s`, in seconds: a minute and a week.
MIN_RESULT_TTL_S = 60
MAX_RESULT_TTL_S = 604_800
#: Longest time limit of a job, in seconds: a week.
MAX_TIME_LIMIT_S = 604_800
#: Longest name of a checkpoint, in characters. It is the name of a folder.
MAX_MODEL_NAME = 255

#: The ways to say what to continue.
PROMPT_FIELDS = ("prompt", "prompt_token_ids", "messages")

TimeLimit = Annotated[float | None, Field(gt=0, le=MAX_TIME_LIMIT_S)]
MetadataName = Annotated[str, StringConstraints(min_length=1, max_length=MAX_METADATA_NAME)]
MetadataValue = Annotated[str, StringConstraints(max_length=MAX_METADATA_VALUE)]


@in_request
class SampledRequest(Model):
    """A prompt and the sampling fields."""

    prompt: str = Field(min_length=1, description="Text to continue.", examples=["123+456="])

    @property
    def sampling(self) -> SamplingParams:
        """The sampling fields. Without a seed in the request `seed` is None."""
        return sampling_of(self)

    @property
    def generation(self) -> Generation:
        """What to generate, with a seed."""
        return Generation(prompt=self.prompt, sampling=self.sampling.with_seed())


class GenerateRequest(SampledRequest):
    """A prompt, and how to continue it."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"prompt": "123+456=", "max_tokens": 20, "temperature": 0.0}]}
    )

    model: str | None = Field(
        None,
        min_length=1,
        max_length=MAX_MODEL_NAME,
        description="The checkpoint to use. null: the default one, or the only one that is served.",
    )


class ChatMessage(Model):
    """A message of a conversation."""

    model_config = ConfigDict(extra="forbid")

    role: str = Field(min_length=1, max_length=32, description="`system`, `user` or `assistant`.")
    content: Text


class JobRequest(GenerateRequest):
    """A generation to queue. Unknown fields are refused, so that a misspelled one is noticed."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [{"prompt": "123+456=", "max_tokens": 20, "temperature": 0.0, "metadata": {"run": "7"}}]
        },
    )

    # Exactly one of the next three is given; `prompt` has another type in the base class.
    prompt: str | None = Field(None, min_length=1, description="Text to continue.", examples=["123+456="])  # type: ignore[assignment]
    prompt_token_ids: list[Annotated[int, Field(ge=0, lt=1 << 31)]] | None = Field(
        None, min_length=1, description="Token ids to continue, instead of `prompt`. The model gets them as they are."
    )
    messages: list[ChatMessage] | None = Field(
        None,
        min_length=1,
        description="A conversation to answer, instead of `prompt`. The checkpoint must have a chat template.",
    )
    tools: bool | None = Field(
        None,
        description="Whether the model may use its calculator, if it knows one. null: in conversations only.",
    )
    priority: int = Field(5, ge=0, le=9, description="0 is first, 9 is last.")
    metadata: dict[MetadataName, MetadataValue] = Field(
        default_factory=dict,
        max_length=MAX_METADATA,
        description="Your own names and values. They are returned with the job.",
    )
    result_ttl_s: int | None = Field(
        None,
        ge=MIN_RESULT_TTL_S,
        le=MAX_RESULT_TTL_S,
        description="How long the job is kept after its end, in seconds. null: the server's default.",
    )
    wait_for_worker: bool = Field(
        False, description="Accept the job even if no worker serves the checkpoint now. It waits until one does."
    )
    queue_timeout_s: TimeLimit = Field(
        None, description="The job expires if no worker has started it within this time, in seconds. null: no limit."
    )
    run_timeout_s: TimeLimit = Field(
        None,
        description="The job fails, and keeps its text so far, when it has run this long in all attempts, in seconds. "
        "null: no limit.",
    )
    deadline_s: TimeLimit = Field(
        None,
        description="The time from the submission to the end of the job, in seconds. When it is over, a job that has "
        "not started expires; one that has started fails and keeps its text so far. null: no limit.",
    )
    max_queue_position: int | None = Field(
        None,
        ge=0,
        le=10**9,
        description="Refuse the job with 429 if more jobs than this would be ahead of it. null: no limit.",
    )

    @model_validator(mode="after")
    def _one_prompt(self) -> Self:
        given = [name for name in PROMPT_FIELDS if getattr(self, name) is not None]
        if len(given) != 1:
            raise PydanticCustomError(
                "one_prompt", "Give exactly one of {fields}.", {"fields": ", ".join(PROMPT_FIELDS)}
            )
        return self

    @property
    def generation(self) -> Generation:
        """What to generate, with a seed."""
        return Generation(
            prompt=self.prompt or "",
            prompt_ids=None if self.prompt_token_ids is None else tuple(self.prompt_token_ids),
            messages=None if self.messages is None else tuple(Message(one.role, one.content) for one in self.messages),
            sampling=self.sampling.with_seed(),
            tools=self.tools,
        )


class GenerateResponse(Model):
    """A prompt and its continuation, in the guide's format."""

    prompt: str = Field(description="The prompt of the request.")
    generated_text: str = Field(description="The prompt and its continuation as one text.")
    tokens_generated: int = Field(description="Number of tokens in the continuation.")
    model: str = Field(description="The checkpoint that generated the text.")
