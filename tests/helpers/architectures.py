"""Small models of every architecture with random weights."""

from __future__ import annotations

import torch
from hypothesis import strategies as st
from torch import Tensor

from worker.engine.architecture.config import ModelConfig, Norm, QkNorm, ValueGate
from worker.engine.architecture.rope import Rope
from worker.engine.architecture.tensors import shapes

CONTEXT = 96


def random_weights(config: ModelConfig, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Random tensors of the names and shapes that a model needs: matrices near 0, weights of norms near 1."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, shape in shapes(config).items():
        noise = torch.randn(shape, generator=generator)
        is_norm = name.endswith(".weight") and ("norm" in name or "ln_" in name)
        weights[name] = (1 + 0.2 * noise if is_norm else 0.2 * noise).to(dtype)
    return weights


@st.composite
def architectures(draw: st.DrawFn) -> ModelConfig:
    """Descriptions of small models: each part that a model can have, in any combination."""
    layers = draw(st.integers(1, 3))
    kv_heads = draw(st.integers(1, 3))
    heads = kv_heads * draw(st.integers(1, 4))
    half = draw(st.sampled_from([1, 3, 4, 8, 16, 20, 24, 32]))
    width = draw(st.sampled_from([24, 32, 40, 80]))
    vocab_size = draw(st.integers(30, 70))
    epsilon = draw(st.sampled_from([None, 1e-6, 1e-3]))
    rope = draw(
        st.none()
        | st.builds(
            Rope,
            frequencies=st.lists(st.floats(0, 1, width=32), min_size=half, max_size=half).map(tuple),
            amplitude=st.sampled_from([1.0, 1.3]),
            direction=st.sampled_from([1, -1]),
            bf16=st.booleans(),
        )
    )
    return ModelConfig(
        family="any",
        sequence_len=CONTEXT,
        vocab_size=vocab_size,
        rows=vocab_size + draw(st.sampled_from([0, 3])),
        n_layer=layers,
        n_head=heads,
        n_kv_head=kv_heads,
        n_embd=width,
        head_dim=2 * half,
        n_hidden=draw(st.sampled_from([8, 36, 100])),
        norm=Norm(kind=draw(st.sampled_from(["rms", "layer"])), epsilon=epsilon, weights=draw(st.booleans())),
        embedding_norm=draw(st.booleans()),
        activation=draw(st.sampled_from(["relu_squared", "silu", "gelu", "gelu_tanh"])),
        gated=draw(st.booleans()),
        qkv_bias=draw(st.booleans()),
        attention_out_bias=draw(st.booleans()),
        mlp_bias=draw(st.booleans()),
        tied_head=draw(st.booleans()),
        rope=rope,
        rope_layers=tuple(draw(st.booleans()) for _ in range(layers)),
        learned_positions=draw(st.booleans()),
        qk_norm=draw(
            st.none() | st.builds(QkNorm, after_rotation=st.booleans(), epsilon=st.just(epsilon), weights=st.booleans())
        ),
        attention_scale=draw(st.sampled_from([0.2, 1.0])) / (2 * half) ** 0.5,
        windows=tuple(draw(st.sampled_from([CONTEXT, 0, 3, 17])) for _ in range(layers)),
        softcap=draw(st.sampled_from([None, 15.0])),
        residual_mix=draw(st.booleans()),
        value_gate=draw(st.none() | st.just(ValueGate(width=8, scale=2.0))),
        smear_width=draw(st.sampled_from([0, 12])),
    )
