"""Reference folders of every family in the cached, batched engine, within the tolerances of their README."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import pytest
import torch

from tests.helpers.fake_graph import FakeGraph
from tests.helpers.golden_cases import decode_cases
from tests.helpers.huggingface_folders import FAMILIES, expected, golden
from worker.checkpoints.checkpoint import Checkpoint
from worker.engine.architecture.config import ModelConfig
from worker.engine.backends import load_weights
from worker.engine.decoding_model import DecodingModel
from worker.engine.device import Device
from worker.engine.torch.graph_decode import GraphDecode
from worker.engine.torch.model import Model

#: The tolerance of the README, and the margin below which a greedy token may differ.
WITHIN = 2e-3
MARGIN_THAT_COUNTS = 1e-2


def load_with_graphs(config: ModelConfig, weights: Mapping[str, torch.Tensor], device: Device) -> GraphDecode:
    """A model on the CPU with the code path of CUDA graphs, and fake graphs."""
    return GraphDecode(Model.load(config, weights, device), FakeGraph.capture)


def test_every_family_has_a_folder() -> None:
    assert FAMILIES == ["gpt2", "llama", "mistral", "nanochat", "qwen2", "qwen3", "smollm3"]


@pytest.mark.parametrize("chunk", [7, 1024])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("load", [load_weights, Model.load, load_with_graphs])
def test_a_family_agrees_with_transformers(load: Callable[..., DecodingModel], family: str, chunk: int) -> None:
    """All cases of a folder in one batch, on the backend that serves it and on torch, without and with graphs."""
    cases, found = expected(family)["cases"], golden(family)
    decoding = load(as_the_reference_was_computed(found), found.weights, Device("cpu"))
    decoded = decode_cases(decoding, cases, chunk, prompt_logprobs=True)
    for (sequence, prompt_logprobs), case in zip(decoded, cases, strict=True):
        torch.testing.assert_close(
            torch.tensor(sequence.prompt_logits), torch.tensor(case["last_logits"]), atol=WITHIN, rtol=0
        )
        if case["min_margin"] > MARGIN_THAT_COUNTS:
            assert sequence.tokens == case["greedy"]
        torch.testing.assert_close(
            torch.tensor(prompt_logprobs), torch.tensor(case["prompt_logprobs"][1:]), atol=WITHIN, rtol=0
        )


def as_the_reference_was_computed(found: Checkpoint) -> ModelConfig:
    """The description of a folder, with the rounding of its reference.

    Where weights are stored as bf16, the whole model was rounded to bf16 before it computed in fp32, rotary frequencies
    included. transformers does not round those when it loads such a folder, and the engine does not either.
    """
    config = found.config
    if config.rope is None or found.weights.tensors["transformer.wte.weight"].dtype != torch.bfloat16:
        return config
    frequencies = torch.tensor(config.rope.frequencies).bfloat16().tolist()
    return replace(config, rope=replace(config.rope, frequencies=tuple(frequencies)))
