"""Bodies of `POST /tokenize`, `POST /detokenize` and `GET /tokenizer_info`, in the format of vLLM."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import ConfigDict, Field

from api.schemas.base import Model
from api.schemas.generation import MAX_MODEL_NAME
from api.schemas.openai.request import TokenId

ModelName = Annotated[
    str | None,
    Field(min_length=1, max_length=MAX_MODEL_NAME, description="null: the default one, or the only one served."),
]


class TokenizeRequest(Model):
    """A text to encode."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"prompt": "123+456="}]})

    model: ModelName = None
    prompt: str = Field(description="The text. Names of special tokens in it become these tokens.")
    add_special_tokens: bool = Field(True, description="Whether BOS comes first, as the checkpoint requires it.")
    return_token_strs: bool | None = None


class Tokenized(Model):
    """Token ids of a text."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None = None


class DetokenizeRequest(Model):
    """Token ids to decode."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"tokens": [1, 2, 3]}]})

    model: ModelName = None
    tokens: list[TokenId]


class Detokenized(Model):
    """The text of token ids."""

    prompt: str


class TokenizerInfo(Model):
    """The tokenizer's configuration, as in `tokenizer_config.json`."""

    model_config = ConfigDict(extra="allow")

    tokenizer_class: str | None = None
    bos_token: Any = None
    eos_token: Any = None
