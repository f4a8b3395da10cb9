"""Engines without a tokenizer."""

from __future__ import annotations

from worker.engine.decoding_model import DecodingModel
from worker.engine.engine import Engine
from worker.engine.kv.budget import KvBudget
from worker.engine.vocabulary import Vocabulary


def engine_of(model: DecodingModel, *, slots: int, tokens: int) -> Engine:
    """Return an engine that decodes bare ids in sequences of at most `tokens` tokens."""
    vocabulary = Vocabulary.without_text(model.config.vocab_size)
    kv_tokens = slots * KvBudget.need(tokens, 0)
    return Engine(model, vocabulary, slots=slots, kv_tokens=kv_tokens, prefill_chunk_tokens=256, prefix_cache=False)
