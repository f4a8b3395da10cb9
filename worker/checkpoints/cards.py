"""Builds the card of a checkpoint: its description for users and front ends, and the digest of its weights."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch

from tasks.card import Card, StoredType, TokenizerCard
from worker.checkpoints.checkpoint import Checkpoint
from worker.checkpoints.generation_config import GenerationConfig
from worker.checkpoints.tokenizers import Tokenizer, tokenizer_content
from worker.engine.architecture.weight_form import INT8_GROUP, Compute, WeightForm, is_matrix

STORED_TYPES: dict[torch.dtype, StoredType] = {
    torch.float32: "fp32",
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
}
#: For a checkpoint without a tokenizer: prompts must be token ids.
NO_TOKENIZER = TokenizerCard(kind="none", text_ids=0)


def build_card(
    checkpoint: Checkpoint,
    tokenizer: Tokenizer | None,
    *,
    kv_bytes_per_token: int,
    form: WeightForm = "exact",
    compute: Compute = "exact",
) -> Card:
    """Build the card. Raises CheckpointError if a file was deleted since the checkpoint was loaded."""
    config, folder = checkpoint.config, checkpoint.folder
    tensors = checkpoint.weights.tensors.values()
    if form == "bf16" and not _has_unrounded(checkpoint):
        form = "exact"
    return Card(
        name=folder.name,
        digest=_digest(checkpoint, tokenizer, form, compute),
        step=folder.step,
        loss=checkpoint.loss,
        loss_name=checkpoint.loss_name,
        family=config.family,
        era=config.era or "",
        dtype=_stored_type(checkpoint),
        n_layer=config.n_layer,
        n_head=config.n_head,
        n_kv_head=config.n_kv_head,
        n_embd=config.n_embd,
        vocab_size=config.vocab_size,
        context=config.sequence_len,
        softcap=config.softcap,
        parameters=sum(tensor.count for tensor in tensors),
        weight_bytes=sum(tensor.nbytes for tensor in tensors),
        weights=form,
        compute=compute,
        default_sampling=None if tokenizer is None else _default_sampling(checkpoint),
        kv_bytes_per_token=kv_bytes_per_token,
        tokenizer=_tokenizer_card(tokenizer),
    )


def _digest(checkpoint: Checkpoint, tokenizer: Tokenizer | None, form: WeightForm, compute: Compute) -> str:
    """SHA-256 (hex) over everything that determines the answer to a prompt.

    That is the digest of the weights; the shape and the softcap; the tokenizer with the token that ends a text;
    the rounding of weights, and that of activations. The step and the loss are not part of it.
    """
    parts = [
        checkpoint.weights.digest().encode(),
        checkpoint.identity.encode(),
        json.dumps(_without_chat(_tokenizer_card(tokenizer)), sort_keys=True).encode(),
    ]
    if tokenizer is not None and (content := tokenizer_content(checkpoint.folder)):
        parts.append(content)
    if form == "int8":
        parts.append(b"int8 weights, a scale for %d" % INT8_GROUP)
    if form == "bf16":
        parts.append(b"bf16 weights")
    if compute == "fast":
        parts.append(b"fast compute")
    return hashlib.sha256(b"\n".join(parts)).hexdigest()


def _has_unrounded(checkpoint: Checkpoint) -> bool:
    """Whether rounding to bf16 changes any weights."""
    stored = checkpoint.weights.tensors.items()
    return any(is_matrix(name) and tensor.dtype is not torch.bfloat16 for name, tensor in stored)


def _stored_type(checkpoint: Checkpoint) -> StoredType:
    """The number format of most of the weights."""
    sizes: dict[StoredType, int] = {}
    for tensor in checkpoint.weights.tensors.values():
        name = STORED_TYPES[tensor.dtype]
        sizes[name] = sizes.get(name, 0) + tensor.count
    return max(sizes, key=lambda name: sizes[name])


def _default_sampling(checkpoint: Checkpoint) -> Mapping[str, float] | None:
    if checkpoint.folder.format != "huggingface":
        return None
    return GenerationConfig.read(checkpoint.folder.path, checkpoint.config.vocab_size).sampling or None


def _without_chat(card: TokenizerCard) -> dict[str, Any]:
    """The fields of a card that say how a text becomes tokens. The files of the tokenizer determine the others."""
    return {name: value for name, value in asdict(card).items() if name not in ("chat", "calculator", "eos_id")}


def _tokenizer_card(tokenizer: Tokenizer | None) -> TokenizerCard:
    return NO_TOKENIZER if tokenizer is None else tokenizer.card()
