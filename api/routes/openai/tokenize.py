"""`POST /tokenize`, `POST /detokenize` and `GET /tokenizer_info`, as vLLM has them."""

from __future__ import annotations

import asyncio
from typing import Annotated

from fastapi import APIRouter, Query

from api.http.openapi import CHANGE_CODES, QUEUE_CODES, openai_errors
from api.http.problems import Code, invalid
from api.http.strict_json import StrictRoute
from api.jobs.tokenizers import EncodingFailedError
from api.openai.token_names import TokenNames
from api.schemas.generation import MAX_MODEL_NAME
from api.schemas.openai.tokenize import Detokenized, DetokenizeRequest, Tokenized, TokenizeRequest, TokenizerInfo
from api.services import ServicesDep

router = APIRouter(route_class=StrictRoute, tags=["openai"])

_CODES = (
    *QUEUE_CODES,
    Code.INVALID_REQUEST,
    Code.MODEL_NOT_FOUND,
    Code.MODEL_REQUIRED,
    Code.MODEL_NOT_LOADED,
    Code.NO_WORKERS,
)


@router.post(
    "/tokenize",
    response_model=Tokenized,
    response_model_exclude_none=True,
    summary="Encode a text",
    responses=openai_errors((*CHANGE_CODES, *_CODES)),
)
async def tokenize(body: TokenizeRequest, services: ServicesDep) -> Tokenized:
    """The token ids of a text. Other than in a prompt, names of special tokens in it become these tokens."""
    card, vocabulary = await services.vocabularies.choose(body.model)

    def encode() -> list[int]:
        return vocabulary.encode(body.prompt, add_special=body.add_special_tokens, parse_special=True)

    try:
        # A long text takes a while.
        tokens = await asyncio.to_thread(encode)
    except EncodingFailedError as error:
        raise invalid(("body", "prompt"), str(error), "encoding_failed") from error
    names = TokenNames(vocabulary)
    return Tokenized(
        count=len(tokens),
        max_model_len=card.context,
        tokens=tokens,
        token_strs=[names.name(token) for token in tokens] if body.return_token_strs else None,
    )


@router.post(
    "/detokenize",
    response_model=Detokenized,
    summary="Decode token ids",
    responses=openai_errors((*CHANGE_CODES, *_CODES)),
)
async def detokenize(body: DetokenizeRequest, services: ServicesDep) -> Detokenized:
    """The text of token ids."""
    card, vocabulary = await services.vocabularies.choose(body.model)
    wrong = next((token for token in body.tokens if token >= card.vocab_size), None)
    if wrong is not None:
        raise invalid(("body", "tokens"), f"{wrong} is no token of {card.name}.", "unknown_token", given=wrong)
    return Detokenized(prompt=await asyncio.to_thread(vocabulary.decode, body.tokens))


@router.get(
    "/tokenizer_info",
    response_model=TokenizerInfo,
    summary="Read a tokenizer's configuration",
    responses=openai_errors(_CODES),
)
async def tokenizer_info(
    services: ServicesDep,
    model: Annotated[str | None, Query(min_length=1, max_length=MAX_MODEL_NAME, description="A checkpoint.")] = None,
) -> TokenizerInfo:
    """The members of the checkpoint's `tokenizer_config.json`. `eos_token` is always there, and may be null."""
    _, vocabulary = await services.vocabularies.choose(model)
    return TokenizerInfo.model_validate(dict(vocabulary.config))
