"""Bodies of `/v1/responses`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field, PlainValidator
from pydantic_core import PydanticCustomError

from api.schemas.base import Model
from api.schemas.generation import MAX_METADATA, MAX_MODEL_NAME, MetadataName, MetadataValue
from api.schemas.openai.chat import MAX_MESSAGES, ChatTokenLogprob, text_of_content
from api.schemas.openai.request import ServiceTier, StopTexts
from api.schemas.text import Text
from tasks.sampling_params import MAX_LOGPROBS, MAX_STOPS, MAX_TEMPERATURE

#: The entry of `include` that asks for log-probabilities.
LOGPROBS = "message.output_text.logprobs"

ResponseStatus = Literal["queued", "in_progress", "completed", "incomplete", "failed", "cancelled"]
Role = Literal["system", "developer", "user", "assistant"]


class InputMessage(Model):
    """A message of the input. Other members, such as `id` and `status`, have no effect."""

    model_config = ConfigDict(extra="allow")

    type: Literal["message"] = "message"
    role: Role
    content: Annotated[Text, BeforeValidator(text_of_content, json_schema_input_type=str | list[dict[str, Any]])]


def _input(value: Any) -> list[InputMessage]:
    """A text as one message of the user."""
    if isinstance(value, str) and value:
        return [InputMessage(role="user", content=value)]
    if not isinstance(value, list) or not 1 <= len(value) <= MAX_MESSAGES:
        raise PydanticCustomError("input_type", "input is a text, or a list of messages, and not empty.")
    for index, item in enumerate(value):
        kind = item.get("type", "message") if isinstance(item, dict) else None
        if kind != "message":
            raise PydanticCustomError(
                "unsupported_item",
                "Item {index} of input is not supported: this server takes messages.",
                {"index": index},
            )
    return [InputMessage.model_validate(item) for item in value]


class ResponseStreamOptions(Model):
    """Options of a stream. They have no effect."""

    include_obfuscation: bool | None = None


class ResponseRequest(Model):
    """A conversation to continue. Undeclared fields are treated as in the other requests: see `OpenAiRequest`."""

    model_config = ConfigDict(extra="allow", json_schema_extra={"examples": [{"input": "How much is 2 + 2?"}]})

    model: str | None = Field(
        None,
        min_length=1,
        max_length=MAX_MODEL_NAME,
        description="The checkpoint. null: the default one, or the only one that is served.",
    )
    input: Annotated[
        list[InputMessage], PlainValidator(_input, json_schema_input_type=str | list[dict[str, Any]])
    ] = Field(description="A text, or a list of messages.")  # fmt: skip
    instructions: Text | None = Field(None, description="A system message before all others.")
    previous_response_id: str | None = Field(None, description="Continue the conversation of this response.")
    max_output_tokens: int | None = Field(None, ge=1, description="null: the rest of the context.")
    temperature: float | None = Field(None, ge=0, le=MAX_TEMPERATURE, description="null: 1.")
    top_p: float | None = Field(None, gt=0, le=1, description="null: 1.")
    top_logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)
    include: list[str] | None = Field(None, description=f"`{LOGPROBS}` adds log-probabilities; others have no effect.")
    stop: StopTexts = Field(None, max_length=MAX_STOPS)
    ignore_eos: bool | None = None
    seed: int | None = None
    stream: bool | None = None
    stream_options: ResponseStreamOptions | None = None
    background: bool | None = Field(None, description="Answer at once. Read the response with GET.")
    store: bool | None = Field(None, description="false: the response is deleted soon after its end.")
    metadata: dict[MetadataName, MetadataValue] | None = Field(None, max_length=MAX_METADATA)
    service_tier: ServiceTier | None = None
    priority: int | None = Field(None, ge=0, le=9)
    wait_for_worker: bool | None = None
    calculator: bool | None = None


class OutputText(Model):
    """The text of an answer."""

    type: Literal["output_text"] = "output_text"
    text: str
    annotations: list[Any] = Field(default_factory=list)
    logprobs: list[ChatTokenLogprob] = Field(default_factory=list)


class OutputMessage(Model):
    """The answer."""

    id: str
    type: Literal["message"] = "message"
    role: Literal["assistant"] = "assistant"
    status: Literal["in_progress", "completed", "incomplete"]
    content: list[OutputText]


class ResponseFailure(Model):
    """Why a response failed."""

    code: Literal["server_error", "rate_limit_exceeded", "invalid_prompt"]
    message: str


class IncompleteDetails(Model):
    """Why a response is incomplete."""

    reason: Literal["max_output_tokens"]


class InputTokensDetails(Model):
    """Details of the input's tokens."""

    cached_tokens: int
    cache_write_tokens: int = 0


class OutputTokensDetails(Model):
    """Details of the answer's tokens."""

    reasoning_tokens: int = 0


class ResponseUsage(Model):
    """Token counts of a response."""

    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    total_tokens: int


class TextFormat(Model):
    """The format of the text."""

    type: Literal["text"] = "text"


class TextOptions(Model):
    """Options of the text."""

    format: TextFormat = Field(default_factory=TextFormat)


class ResponseJob(Model):
    """The job of a response. A field of this server, which clients of OpenAI's API ignore."""

    job_id: str
    attempts: int
    tool_calls: list[dict[str, str]]


class ModelResponse(Model):
    """A response."""

    id: str
    object: Literal["response"] = "response"
    created_at: int = Field(description="Unix time in seconds.")
    completed_at: int | None
    status: ResponseStatus
    background: bool
    error: ResponseFailure | None
    incomplete_details: IncompleteDetails | None
    instructions: str | None
    max_output_tokens: int | None
    metadata: dict[str, str]
    model: str
    output: list[OutputMessage]
    parallel_tool_calls: bool = True
    previous_response_id: str | None
    service_tier: str
    store: bool
    temperature: float
    text: TextOptions = Field(default_factory=TextOptions)
    tool_choice: Literal["auto"] = "auto"
    tools: list[Any] = Field(default_factory=list)
    top_logprobs: int
    top_p: float
    truncation: Literal["disabled"] = "disabled"
    usage: ResponseUsage | None = Field(description="null until the response is over.")
    celeriac: ResponseJob


class DeletedResponse(Model):
    """A response that was deleted."""

    id: str
    object: Literal["response"] = "response"
    deleted: Literal[True] = True


class InputText(Model):
    """The text of a message of the input."""

    type: Literal["input_text", "output_text"]
    text: str


class InputItem(Model):
    """A message of the input."""

    id: str
    type: Literal["message"] = "message"
    role: Role
    status: Literal["completed"] = "completed"
    content: list[InputText]


class InputItems(Model):
    """The messages of a response's input."""

    object: Literal["list"] = "list"
    data: list[InputItem]
    first_id: str | None
    last_id: str | None
    has_more: bool


class ResponseEvent(Model):
    """The data of an event of a response's stream. Which members it has depends on `type`, the event's name."""

    model_config = ConfigDict(extra="allow")

    type: str
    sequence_number: int = Field(description="4 and the tokens so far for a delta; it grows from event to event.")
    response: ModelResponse | None = None
    output_index: int | None = None
    content_index: int | None = None
    item_id: str | None = None
    item: OutputMessage | None = None
    part: OutputText | None = None
    delta: str | None = None
    text: str | None = None
    logprobs: list[ChatTokenLogprob] | None = None
    code: str | None = None
    message: str | None = None
    param: str | None = None
