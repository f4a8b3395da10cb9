"""Bodies of `POST /v1/completions`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, PlainValidator
from pydantic_core import PydanticCustomError

from api.schemas.base import Model
from api.schemas.openai.answer import ChoiceJob, StopReason, TokenUsage
from api.schemas.openai.request import OpenAiRequest
from api.schemas.text import encodable
from tasks.sampling_params import MAX_LOGPROBS, MAX_TOKEN_ID

#: One prompt: a text, or token ids.
Prompt = str | tuple[int, ...]


def _prompts(value: Any) -> tuple[Prompt, ...]:
    """The prompts: at least one, and none of them empty."""
    match value:
        case str():
            found: tuple[Prompt, ...] = (_text(value),)
        case [int(), *_]:
            found = (_ids(value),)
        case [_, *_]:
            found = tuple(_text(one) if isinstance(one, str) else _ids(one) for one in value)
        case _:
            raise _wrong("a text, a list of texts, a list of token ids, or a list of such lists")
    return found


def _text(value: str) -> str:
    if not value:
        raise _wrong("a text of at least one character")
    return encodable(value)


def _ids(value: Any) -> tuple[int, ...]:
    # `True` is an int in Python, and no token.
    if not isinstance(value, list) or not value or not all(type(one) is int for one in value):
        raise _wrong("a list of token ids that is not empty")
    if min(value) < 0 or max(value) > MAX_TOKEN_ID:
        raise _wrong(f"a list of token ids from 0 to {MAX_TOKEN_ID}")
    return tuple(value)


def _wrong(expected: str) -> PydanticCustomError:
    return PydanticCustomError("prompt_type", "A prompt is {expected}.", {"expected": expected})


class CompletionRequest(OpenAiRequest):
    """Prompts to continue."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"prompt": "123+456=", "max_tokens": 20, "temperature": 0.0}]}
    )

    prompt: Annotated[
        tuple[Prompt, ...],
        PlainValidator(_prompts, json_schema_input_type=str | list[str] | list[int] | list[list[int]]),
    ] = Field(description="One prompt or several: texts, or lists of token ids, which are used as they are.")
    max_tokens: int | None = Field(
        None, ge=0, description="Most tokens to generate. null: 16. 0: none, only with `echo`."
    )
    echo: bool | None = Field(None, description="The text begins with the prompt.")
    logprobs: int | None = Field(
        None, ge=0, le=MAX_LOGPROBS, description="Log-probabilities, with this many of the most likely tokens."
    )
    add_special_tokens: bool | None = Field(None, description="false: no BOS before a prompt that is a text.")


class CompletionLogprobs(Model):
    """Log-probabilities of the tokens of a text, one item a token in each list."""

    tokens: list[str] = Field(description="A token that is no UTF-8 by itself is written as `bytes:\\xe2`.")
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int] = Field(description="Where the token begins in `text`, in characters.")


class CompletionChoice(Model):
    """One answer, or in a chunk a part of it."""

    index: int = Field(description="Index of the prompt times `n`, plus the index of the answer.")
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: StopReason | None
    celeriac: ChoiceJob | None = Field(None, description="In a stream: only in the last chunk of a choice.")


class Completion(Model):
    """The answers to the prompts, or in a stream a chunk of one."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int = Field(description="Unix time of the call in seconds.")
    model: str
    system_fingerprint: str = Field(description="Changes when the checkpoint's weights or tokenizer change.")
    choices: list[CompletionChoice]
    usage: TokenUsage | None = Field(None, description="In a stream only if it was asked for.")
