"""The fields that `/v1/completions` and `/v1/chat/completions` share."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field, StringConstraints

from api.schemas.base import Model
from api.schemas.generation import MAX_METADATA, MAX_MODEL_NAME, MetadataName, MetadataValue
from tasks.sampling_params import (
    ID_PATTERN,
    MAX_BIAS,
    MAX_BIASES,
    MAX_PENALTY,
    MAX_REPETITION_PENALTY,
    MAX_STOP_CHARACTERS,
    MAX_STOP_TOKEN_IDS,
    MAX_STOPS,
    MAX_TEMPERATURE,
    MAX_TOKEN_ID,
    MAX_TOKENS_LIMIT,
)

#: Most jobs of one call: the number of prompts times `n`.
MAX_GROUP = 128


def _stop_list(value: Any) -> Any:
    """One text as a list of one. Empty texts, which end nothing, are left out."""
    texts = [value] if isinstance(value, str) else value
    return [text for text in texts if text != ""] if isinstance(texts, list) else texts


StopText = Annotated[str, StringConstraints(max_length=MAX_STOP_CHARACTERS)]
StopTexts = Annotated[
    list[StopText] | None,
    BeforeValidator(_stop_list, json_schema_input_type=str | list[str] | None),
]
TokenId = Annotated[int, Field(ge=0, le=MAX_TOKEN_ID)]
TokenIdName = Annotated[str, StringConstraints(pattern=ID_PATTERN)]
Bias = Annotated[float, Field(ge=-MAX_BIAS, le=MAX_BIAS)]
ServiceTier = Literal["auto", "default", "flex", "priority", "scale"]


class StreamOptions(Model):
    """What a stream says beside the text."""

    include_usage: bool | None = Field(None, description="Send a last chunk without choices that has the token counts.")
    continuous_usage_stats: bool | None = Field(
        None, description="With `include_usage`: every chunk has the token counts so far."
    )


class OpenAiRequest(Model):
    """A request to generate, without the prompt. null is the same as a field that is left out.

    Fields that are not declared here are in `model_extra`: `api.openai.neutral_values` has rules for some of them, and
    the others are ignored and named in a header.
    """

    model_config = ConfigDict(extra="allow")

    model: str | None = Field(
        None,
        min_length=1,
        max_length=MAX_MODEL_NAME,
        description="The checkpoint. null: the default one, or the only one that is served.",
    )
    n: int | None = Field(None, ge=1, le=MAX_GROUP, description="Answers to each prompt. null: 1.")
    temperature: float | None = Field(None, ge=0, le=MAX_TEMPERATURE, description="null: 1.")
    top_p: float | None = Field(None, gt=0, le=1, description="null: 1.")
    top_k: int | None = Field(None, ge=-1, description="null, 0 and -1: from all tokens.")
    min_p: float | None = Field(None, ge=0, le=1)
    presence_penalty: float | None = Field(None, ge=-MAX_PENALTY, le=MAX_PENALTY)
    frequency_penalty: float | None = Field(None, ge=-MAX_PENALTY, le=MAX_PENALTY)
    repetition_penalty: float | None = Field(None, gt=0, le=MAX_REPETITION_PENALTY)
    logit_bias: dict[TokenIdName, Bias] | None = Field(None, max_length=MAX_BIASES)
    stop: StopTexts = Field(
        None, max_length=MAX_STOPS, description=f"A text or a list of at most {MAX_STOPS}. The text ends before them."
    )
    stop_token_ids: list[TokenId] | None = Field(None, max_length=MAX_STOP_TOKEN_IDS)
    ignore_eos: bool | None = None
    min_tokens: int | None = Field(None, ge=0, le=MAX_TOKENS_LIMIT)
    seed: int | None = Field(
        None,
        description="Any integer. One below 0 or from 2^53 is replaced by a hash of it with 53 bits, always the same.",
    )
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    service_tier: ServiceTier | None = Field(
        None, description="`priority` queues with priority 1, `flex` with 8, all others with 5."
    )
    metadata: dict[MetadataName, MetadataValue] | None = Field(
        None, max_length=MAX_METADATA, description="Your own names and values. They are kept with the job."
    )
    priority: int | None = Field(None, ge=0, le=9, description="0 is first, 9 is last. Overrides `service_tier`.")
    wait_for_worker: bool | None = Field(
        None, description="Accept the call even if no worker serves the checkpoint now. It waits until one does."
    )
    calculator: bool | None = Field(
        None,
        description="Whether the model may use its calculator, if it knows one. null: in conversations, not in "
        "completions.",
    )
    return_tokens_as_token_ids: bool | None = Field(
        None, description="In log-probabilities, name each token `token_id:<id>` instead of by its text."
    )
