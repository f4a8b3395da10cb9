"""The model on torch gives the logits of the slow reference for every architecture that can be described.

It does so with the fixed shapes of CUDA graphs, too.
"""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers import reference
from tests.helpers.architectures import CONTEXT, architectures, random_weights
from tests.helpers.engines import decode, engine, request
from tests.helpers.fake_graph import FakeGraph
from tests.helpers.kernels import prompt_logits
from worker.engine.architecture.config import ModelConfig
from worker.engine.device import Device
from worker.engine.torch.graph_decode import GraphDecode
from worker.engine.torch.model import Model


@settings(deadline=None, max_examples=60)
@given(
    config=architectures(),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    seed=st.integers(0, 5),
    length=st.integers(1, CONTEXT - 2),
    chunk=st.sampled_from([1, 5, 64]),
    others=st.sampled_from([0, 2]),
)
def test_every_architecture_gives_the_logits_of_the_reference(
    config: ModelConfig, dtype: torch.dtype, seed: int, length: int, chunk: int, others: int
) -> None:
    weights = random_weights(config, seed=seed, dtype=dtype)
    generator = torch.Generator().manual_seed(seed)
    prompt = tuple(torch.randint(config.vocab_size, (length,), generator=generator).tolist())
    found = prompt_logits(Model.load(config, weights, Device("cpu")), prompt, chunk=chunk, others=others)
    expected = reference.logits(config, weights, prompt)[-1]
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-3)


@settings(deadline=None, max_examples=30)
@given(config=architectures(), seed=st.integers(0, 5), length=st.integers(1, CONTEXT // 2))
def test_steps_of_fixed_shapes_decode_the_same_ids(config: ModelConfig, seed: int, length: int) -> None:
    weights = random_weights(config, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    prompt = tuple(torch.randint(config.vocab_size, (length,), generator=generator).tolist())
    model = Model.load(config, weights, Device("cpu"))
    asked = request("one", prompt, 12, every_id=True, temperature=1.0, seed=seed)
    plain, fixed = (
        decode(engine(one, slots=1), asked).tokens for one in (model, GraphDecode(model, FakeGraph.capture))
    )
    assert plain == fixed
