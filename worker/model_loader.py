"""Loads a checkpoint into an engine, for the engine process and for `celeriac run`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

from torch import Tensor

from tasks.card import Card
from tasks.machine_memory import return_free_memory
from worker.checkpoints import formats
from worker.checkpoints.cards import build_card
from worker.checkpoints.checkpoint import Checkpoint, Weights
from worker.checkpoints.folder import CheckpointFolder
from worker.checkpoints.tokenizers import Tokenizer, tokenizer_digest, visible_text
from worker.engine.architecture.weight_form import Compute, WeightForm
from worker.engine.backends import compute_warnings, load_weights
from worker.engine.device import Device
from worker.engine.engine import Engine
from worker.engine.kv.budget import KvBudget
from worker.engine.tools.tool_use import ToolUse
from worker.engine.vocabulary import Vocabulary
from worker.engine.warm_up import warm_up

#: A context that does not fit into the KV memory is limited to a multiple of this many tokens.
CONTEXT_STEP = 1024

DeviceName = Literal["auto", "cpu", "cuda", "mps"]
#: Is called with the bytes of the weights that are loaded, and with those of all weights.
Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class DescribedModel:
    """What is known of a checkpoint on a device before its weights are read."""

    checkpoint: Checkpoint
    card: Card
    #: Size of the KV cache, in tokens.
    kv_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedModel:
    """A checkpoint in memory, and the engine that decodes with it."""

    engine: Engine
    card: Card
    device: Device
    #: Size of the KV cache, in tokens.
    kv_tokens: int
    #: SHA-256 (hex) of the tokenizer's files; empty if it has none.
    tokenizer_digest: str
    #: Warnings for the operator about the checkpoint.
    warnings: tuple[str, ...]


class CountedWeights(Mapping[str, Tensor]):
    """Weights that report how many of their bytes were taken."""

    def __init__(self, weights: Weights, progress: Progress) -> None:
        self._weights = weights
        self._progress = progress
        # Their sizes are known before they are read.
        self._left = {name: tensor.nbytes for name, tensor in weights.tensors.items()}
        self._total = sum(self._left.values())
        progress(0, self._total)

    def __getitem__(self, name: str) -> Tensor:
        """A tensor. All that were taken before it are loaded."""
        tensor = self._weights[name]
        self._progress(self._total - sum(self._left.values()), self._total)
        self._left.pop(name, None)
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._weights)

    def __len__(self) -> int:
        return len(self._weights)


def vocabulary_of(tokenizer: Tokenizer, size: int) -> Vocabulary:
    """The vocabulary of the first `size` ids of a tokenizer, for the engine."""
    text = tuple(tokenizer.token_bytes(token_id) for token_id in range(size))
    ids = tokenizer.tool_ids
    tool_ids = frozenset() if ids is None else frozenset((ids.python_start, ids.python_end))
    return Vocabulary(size=size, text=text, stop_ids=tokenizer.stop_ids, tool_ids=tool_ids)


def tool_use_of(tokenizer: Tokenizer | None) -> Callable[[], ToolUse] | None:
    """What makes the tools of a sequence; None if the checkpoint knows no tool."""
    if tokenizer is None or tokenizer.tool_ids is None:
        return None
    return partial(
        ToolUse, tokenizer.tool_ids, partial(visible_text, tokenizer), lambda text: tokenizer.encode(text).ids
    )


def describe_model(
    folder: CheckpointFolder,
    tokenizer: Tokenizer | None,
    *,
    device: Device,
    softcap: float | None,
    weights: WeightForm,
    compute: Compute = "exact",
    slots: int,
    kv_memory_mb: int,
    context: int = 0,
) -> DescribedModel:
    """Read what describes a checkpoint, and check it. The arguments are those of `load_model`.

    Raises CheckpointError, and ValueError if the device has too little KV memory for one context.
    """
    checkpoint = formats.load(folder, softcap=softcap)
    if context:
        checkpoint = formats.with_context(checkpoint, context)
    kv_tokens = device.kv_tokens(checkpoint.config, slots=slots, kv_memory_mb=kv_memory_mb)
    bytes_per_token = device.kv_bytes_per_token(checkpoint.config)
    one_context = KvBudget.need(checkpoint.config.sequence_len, 0)
    if kv_tokens < one_context:
        fitting = kv_tokens // CONTEXT_STEP * CONTEXT_STEP
        needed_mb = -(-one_context * bytes_per_token // 2**20)
        if context or not fitting:
            raise ValueError(
                f"the KV cache has room for {kv_tokens} tokens, less than one context of "
                f"{checkpoint.config.sequence_len}: set CELERIAC_KV_MEMORY_MB to {needed_mb} or more, set "
                "CELERIAC_CONTEXT to less, or use a device with more memory"
            )
        warning = (
            f"The context of {checkpoint.config.sequence_len} tokens is limited to {fitting}, for which the KV cache "
            f"has room. Set CELERIAC_KV_MEMORY_MB to {needed_mb} for the whole context, or CELERIAC_CONTEXT to choose "
            "another limit. Workers of one checkpoint need equal limits."
        )
        checkpoint = formats.with_context(checkpoint, fitting)
        checkpoint = replace(checkpoint, warnings=(*checkpoint.warnings, warning))
    card = build_card(checkpoint, tokenizer, kv_bytes_per_token=bytes_per_token, form=weights, compute=compute)
    return DescribedModel(checkpoint=checkpoint, card=card, kv_tokens=kv_tokens)


def load_model(
    folder: CheckpointFolder,
    tokenizer: Tokenizer | None,
    *,
    device: DeviceName,
    threads: int,
    softcap: float | None,
    weights: WeightForm,
    compute: Compute = "exact",
    slots: int,
    kv_memory_mb: int,
    prefill_chunk_tokens: int,
    context: int = 0,
    prefix_cache: bool = True,
    progress: Progress = lambda _loaded, _total: None,
) -> LoadedModel:
    """Load a checkpoint, and decode a few tokens to warm the engine up. Without a tokenizer, ids have no text.

    `softcap` None: the era's. `kv_memory_mb` 0: KV memory for `slots` full contexts, as far as the device has it.
    `context`: the longest sequence in tokens, if the checkpoint's own is longer. 0: the checkpoint's, or, if the KV
    memory has no room for that, the largest multiple of `CONTEXT_STEP` for which it has.

    Raises CheckpointError. Raises ValueError if the device is missing, cannot use weights of this form or compute in
    this way, or has too little KV memory for one context.
    """
    chosen = Device.choose(device, threads=threads)
    described = describe_model(
        folder,
        tokenizer,
        device=chosen,
        softcap=softcap,
        weights=weights,
        compute=compute,
        slots=slots,
        kv_memory_mb=kv_memory_mb,
        context=context,
    )
    checkpoint, kv_tokens = described.checkpoint, described.kv_tokens
    config = checkpoint.config
    vocabulary = (
        Vocabulary.without_text(config.vocab_size) if tokenizer is None else vocabulary_of(tokenizer, config.vocab_size)
    )
    # Reading a tokenizer needs more memory than it keeps. The weights need theirs next.
    return_free_memory()
    model = load_weights(config, CountedWeights(checkpoint.weights, progress), chosen, weights, compute)
    engine = Engine(
        model,
        vocabulary,
        slots=slots,
        kv_tokens=kv_tokens,
        prefill_chunk_tokens=prefill_chunk_tokens,
        prefix_cache=prefix_cache,
        tool_use=tool_use_of(tokenizer),
    )
    warm_up(engine)
    return LoadedModel(
        engine=engine,
        card=described.card,
        device=chosen,
        kv_tokens=kv_tokens,
        tokenizer_digest="" if tokenizer is None else tokenizer_digest(folder),
        warnings=(*checkpoint.warnings, *compute_warnings(model, compute)),
    )
