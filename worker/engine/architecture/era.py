"""The architecture eras of nanochat: how they differ, and the description of a model of an era.

The table in `docs/reference/checkpoints.md` has their dates. E4x (bigram embeddings), mixtures of experts and shapes
that existed only in branches are not supported: `worker.checkpoints.nanochat_weights` rejects them by name.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from worker.engine.architecture.angles import base_frequencies
from worker.engine.architecture.config import ModelConfig, Norm, QkNorm, ValueGate
from worker.engine.architecture.rope import Rope

#: Number of channels of an embedding that the smear gate reads.
SMEAR_WIDTH = 24


@dataclass(frozen=True, slots=True, kw_only=True)
class Era:
    """One architecture. The defaults are the values of the first era."""

    #: `E1a` to `E7`.
    name: str
    #: Whether `resid_lambdas` and `x0_lambdas` mix the residual stream with the embedding before each layer.
    lambdas: bool = False
    #: Number of channels of a layer's normed input that the gate of its value embedding reads; 0: no value embeddings.
    gate_width: int = 0
    #: Factor of that gate's sigmoid.
    gate_scale: float = 0.0
    #: Number of channels of an embedding that the smear gate reads; 0: neither smear nor backout.
    smear_width: int = 0
    #: Factor by which queries, and keys, are multiplied after their norm.
    qk_scale: float = 1.0
    #: Logits are `softcap * tanh(raw / softcap)`.
    softcap: float = 15.0
    #: Angles are `position * rope_base ** (-2 j / head_dim)`.
    rope_base: float = 10_000.0
    #: Whether sines and cosines are rounded to bf16 at inference, even on a CPU.
    rope_bf16: bool = True
    #: A short window is `sequence_len` divided by this ...
    window_divisor: int = 2
    #: ... rounded up to a multiple of this number of keys; 0: rounded down to an integer.
    window_multiple: int = 0

    def short_window(self, sequence_len: int) -> int:
        """How many keys before its own a query of a layer marked `S` attends to."""
        if not self.window_multiple:
            return sequence_len // self.window_divisor
        return -(-sequence_len // (self.window_divisor * self.window_multiple)) * self.window_multiple


E1A = Era(name="E1a")
E1B = Era(name="E1b")
E2 = Era(name="E2", lambdas=True)
E3 = Era(name="E3", lambdas=True)
E4 = Era(name="E4", lambdas=True, gate_width=32, gate_scale=2.0)
E5 = Era(name="E5", lambdas=True, gate_width=32, gate_scale=2.0, softcap=20.0)
E6 = Era(
    name="E6",
    lambdas=True,
    gate_width=12,
    gate_scale=3.0,
    qk_scale=1.15,
    rope_base=100_000.0,
    rope_bf16=False,
    window_divisor=3,
    window_multiple=128,
)
E7 = Era(
    name="E7",
    lambdas=True,
    gate_width=12,
    gate_scale=3.0,
    smear_width=SMEAR_WIDTH,
    qk_scale=1.2,
    rope_base=100_000.0,
    rope_bf16=False,
    window_divisor=4,
    window_multiple=128,
)
#: Every era by its name, oldest first.
ERAS: dict[str, Era] = {era.name: era for era in (E1A, E1B, E2, E3, E4, E5, E6, E7)}


def nanochat_config(
    *,
    era: Era,
    sequence_len: int,
    vocab_size: int,
    rows: int,
    n_layer: int,
    n_head: int,
    n_kv_head: int,
    n_embd: int,
    softcap: float | None = None,
    window_pattern: str = "L",
) -> ModelConfig:
    """The description of a model of `era`. Raises ValueError for a value that is wrong.

    `rows`: those of the embedding. `softcap` None: the era's. `window_pattern` has one letter for each layer, and
    repeats if there are more layers: `L` attends to all keys, `S` to a short window. The last layer is always `L`.
    """
    if n_head < 1 or n_embd % n_head:
        raise ValueError(f"n_embd {n_embd} cannot be divided among n_head {n_head}")
    head_dim = n_embd // n_head
    if head_dim % 2:
        raise ValueError(f"a head has {head_dim} channels (n_embd / n_head); rotary positions need an even count")
    if not window_pattern or set(window_pattern.upper()) - set("SL"):
        raise ValueError(f"window_pattern is {window_pattern!r}; only the letters S and L are allowed")
    letters = [window_pattern[layer % len(window_pattern)].upper() for layer in range(n_layer - 1)] + ["L"]
    return ModelConfig(
        family="nanochat",
        era=era.name,
        sequence_len=sequence_len,
        vocab_size=vocab_size,
        rows=rows,
        n_layer=n_layer,
        n_head=n_head,
        n_kv_head=n_kv_head,
        n_embd=n_embd,
        head_dim=head_dim,
        n_hidden=4 * n_embd,
        norm=Norm(),
        embedding_norm=True,
        activation="relu_squared",
        rope=Rope(
            frequencies=tuple(base_frequencies(era.rope_base, head_dim).tolist()),
            direction=-1,
            bf16=era.rope_bf16,
            origin=f"base {era.rope_base:g}",
        ),
        rope_layers=(True,) * n_layer,
        qk_norm=QkNorm(after_rotation=True),
        # The era multiplies both queries and keys by a factor.
        attention_scale=era.qk_scale**2 / math.sqrt(head_dim),
        windows=tuple(sequence_len if letter == "L" else era.short_window(sequence_len) for letter in letters),
        softcap=era.softcap if softcap is None else softcap,
        residual_mix=era.lambdas,
        value_gate=ValueGate(width=era.gate_width, scale=era.gate_scale) if era.gate_width else None,
        smear_width=era.smear_width,
    )
