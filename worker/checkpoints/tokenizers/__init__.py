"""Tokenizers of checkpoints. They do not import torch, because the Celery side uses them."""

from worker.checkpoints.tokenizers.base import (
    STOP_TOKENS,
    Decoder,
    Encoding,
    Tokenizer,
    TokenizerFailedError,
    UnknownCharacterError,
    tool_content_of,
    visible_text,
)
from worker.checkpoints.tokenizers.finder import check_tokenizer, load_tokenizer, tokenizer_content, tokenizer_digest

__all__ = [
    "STOP_TOKENS",
    "Decoder",
    "Encoding",
    "Tokenizer",
    "TokenizerFailedError",
    "UnknownCharacterError",
    "check_tokenizer",
    "load_tokenizer",
    "tokenizer_content",
    "tokenizer_digest",
    "tool_content_of",
    "visible_text",
]
