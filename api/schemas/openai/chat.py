"""Bodies of `POST /v1/chat/completions`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from api.schemas.base import Model
from api.schemas.openai.answer import ChoiceJob, StopReason, TokenUsage
from api.schemas.openai.request import OpenAiRequest
from api.schemas.text import Text
from tasks.sampling_params import MAX_LOGPROBS

#: Most messages of one conversation.
MAX_MESSAGES = 10_000
#: Types of the parts of a content that are text.
TEXT_PARTS = ("text", "input_text", "output_text")


class TextPart(Model):
    """A part of a message's content."""

    type: Literal["text"]
    text: str


def text_of_content(value: Any) -> Any:
    """The text of a content that is a list of parts; any other content as it is."""
    return "".join(_text_of_part(part) for part in value) if isinstance(value, list) else value


def _text_of_part(part: Any) -> str:
    kind = part.get("type") if isinstance(part, dict) else None
    text = part.get("text") if isinstance(part, dict) else None
    if isinstance(kind, str) and kind not in TEXT_PARTS:
        raise PydanticCustomError(
            "unsupported_content", "Parts of type {kind} are not supported: the checkpoints read text.", {"kind": kind}
        )
    if kind is None or not isinstance(text, str):
        raise PydanticCustomError("content_part", 'A part of a content is {{"type": "text", "text": "..."}}.')
    return text


def _known_role(value: Any) -> Any:
    if value in ("tool", "function"):
        raise PydanticCustomError(
            "unsupported_role", "Messages with the role {role} are not supported: this server calls no tools.",
            {"role": value},
        )  # fmt: skip
    return value


class ChatMessage(Model):
    """One message. Other members, such as `name`, have no effect."""

    model_config = ConfigDict(extra="allow")

    role: Annotated[
        Literal["system", "developer", "user", "assistant"], BeforeValidator(_known_role)
    ] = Field(description="`developer` is the same as `system`.")  # fmt: skip
    content: Annotated[Text, BeforeValidator(text_of_content, json_schema_input_type=str | list[TextPart])] = Field(
        description="A text, or a list of parts of type `text`, which are joined."
    )

    @field_validator("content", mode="before")
    @classmethod
    def _empty_answer(cls, value: Any, info: ValidationInfo) -> Any:
        """OpenAI's libraries send the answer back as they got it: an empty one may be null."""
        return "" if value is None and info.data.get("role") == "assistant" else value


class ChatRequest(OpenAiRequest):
    """A conversation to continue with an answer."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"messages": [{"role": "user", "content": "How much is 2 + 2?"}]}]}
    )

    messages: list[ChatMessage] = Field(min_length=1, max_length=MAX_MESSAGES)
    max_completion_tokens: int | None = Field(
        None, ge=1, description="Most tokens of the answer. null: the rest of the context."
    )
    max_tokens: int | None = Field(None, ge=1, description="The older name of `max_completion_tokens`.")
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS, description="Only with `logprobs`.")


class ChatAlternative(Model):
    """A token that was likely in one place."""

    token: str
    logprob: float
    bytes: list[int] | None = Field(description="Its UTF-8 bytes; null for a special token.")


class ChatTokenLogprob(ChatAlternative):
    """The token in one place of the text."""

    top_logprobs: list[ChatAlternative]


class ChatLogprobs(Model):
    """Log-probabilities of the tokens of a text."""

    content: list[ChatTokenLogprob]


class AssistantMessage(Model):
    """The model's answer."""

    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class ChatDelta(Model):
    """The next part of the model's answer."""

    role: Literal["assistant"] | None = None
    content: str | None = None


class ChatChoice(Model):
    """One answer."""

    index: int
    message: AssistantMessage
    logprobs: ChatLogprobs | None
    finish_reason: StopReason
    celeriac: ChoiceJob


class ChatChunkChoice(Model):
    """A part of one answer."""

    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None
    finish_reason: StopReason | None
    celeriac: ChoiceJob | None = Field(None, description="Only in the last chunk of a choice.")


class ChatCompletion(Model):
    """The answers to a conversation."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int = Field(description="Unix time of the call in seconds.")
    model: str
    system_fingerprint: str = Field(description="Changes when the checkpoint's weights or tokenizer change.")
    choices: list[ChatChoice]
    usage: TokenUsage


class ChatChunk(Model):
    """A chunk of a stream."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChunkChoice]
    usage: TokenUsage | None = None
