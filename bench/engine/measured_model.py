"""The model that `bench.engine` measures, and the least work of a step of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import prod

from torch import Tensor

from bench.engine.limits import Limits
from bench.source import Source
from worker.engine.architecture.config import ModelConfig
from worker.engine.architecture.tensors import EMBEDDING, HEAD, POSITIONS, shapes
from worker.engine.decoding_model import DecodingModel
from worker.engine.native.model import NativeModel


class InFp32(Mapping[str, Tensor]):
    """Weights whose tensors are widened to fp32 when they are read."""

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        self._weights = weights

    def __getitem__(self, name: str) -> Tensor:
        return self._weights[name].float()

    def __iter__(self) -> Iterator[str]:
        return iter(self._weights)

    def __len__(self) -> int:
        return len(self._weights)


def refusal(peer: str, source: Source, weights: str) -> str | None:
    """Return why a peer cannot run this model with weights of this form; None if it can."""
    is_folder = "folder" in source.peer_fields
    if peer == "llama.cpp":
        return None if is_folder else "llama.cpp has no nanochat: give it a Hugging Face folder"
    if weights != "exact":
        return f"{peer} has weights as they are stored: compare them with --weights exact"
    if peer == "vllm" and is_folder:
        return "vllm is compared with nanochat's files and with --shape only"
    if not is_folder and source.config.era not in ("E1a", "E1b"):
        return f"{peer} runs checkpoints of eras E1a and E1b only; this one is of era {source.config.era}"
    return None


def matrix_elements(config: ModelConfig) -> tuple[int, int]:
    """Return the number of elements of all layers' matrices, and of the head's."""
    tables = (EMBEDDING, HEAD, POSITIONS)
    layers = sum(
        prod(shape)
        for name, shape in shapes(config).items()
        if len(shape) == 2 and name not in tables and not name.startswith("value_embeds")
    )
    return layers, config.vocab_size * config.n_embd


def element_bytes(model: DecodingModel) -> float:
    """Return the size of an element of a matrix in memory."""
    if isinstance(model, NativeModel):
        return model.matrix_bytes / sum(matrix_elements(model.config))
    return float(model.device.dtype.itemsize)


def least_step_s(model: DecodingModel, limits: Limits, batch: int, context: float) -> float:
    """Return the least time for a step that decodes `batch` rows, each with `context` tokens."""
    config = model.config
    elements = sum(matrix_elements(config))
    kv = batch * context * model.device.kv_bytes_per_token(config)
    attention = 4 * batch * context * config.n_layer * config.q_dim
    return limits.seconds(elements * element_bytes(model) + kv, 2.0 * elements * batch + attention)


def least_prefill_s(model: DecodingModel, limits: Limits, batch: int, length: int) -> float:
    """Return the least time for `batch` prompts of `length` tokens. Only the last token of each needs logits."""
    config = model.config
    layers, head = matrix_elements(config)
    attention = 2 * batch * length * length * config.n_layer * config.q_dim  # half of all pairs, 4 operations each
    flop = 2.0 * batch * (length * layers + head) + attention
    return limits.seconds((layers + head) * element_bytes(model), flop)
