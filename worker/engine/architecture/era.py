"""The architecture eras of nanochat as data: how they differ, apart from the tensors of their checkpoints.

The table in `docs/reference/checkpoints.md` has their dates. E4x (bigram embeddings), mixtures of experts and shapes
that existed only in branches are not supported: `worker.checkpoints.formats` rejects them by name.
"""

from __future__ import annotations

from dataclasses import dataclass

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

    @property
    def smear(self) -> bool:
        """Whether the era has smear and backout.

        Smear adds to each embedding a part of the one before it. Backout takes the stream in the middle of the layers
        and subtracts a part of it after the last layer.
        """
        return self.smear_width > 0

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
