"""The description of a model: its sizes and every operation of its forward pass, as data.

Readers of checkpoints make it, one for each format. The models on torch and on compiled kernels follow it, and ask for
nothing else: they do not know the family.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from worker.engine.architecture.rope import Rope

#: Upper limits. A larger value means a broken file.
LIMITS = {
    "sequence_len": 1 << 20,
    "vocab_size": 1 << 22,
    "rows": 1 << 22,
    "n_layer": 1 << 10,
    "n_head": 1 << 10,
    "n_kv_head": 1 << 10,
    "n_embd": 1 << 16,
    "head_dim": 1 << 12,
    "n_hidden": 1 << 19,
}

#: What is applied to the hidden values of the MLP: `max(0, x)^2`, `x sigmoid(x)`, the exact GELU, or its approximation
#: by tanh.
Activation = Literal["relu_squared", "silu", "gelu", "gelu_tanh"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Norm:
    """A norm over the channels of a position."""

    #: `rms`: x / sqrt(mean(x^2) + epsilon). `layer`: the same of x - mean(x), with the variance.
    kind: Literal["rms", "layer"] = "rms"
    #: None: the epsilon of the number format that the model computes in.
    epsilon: float | None = None
    #: Whether the result is multiplied by a learned weight. A layer norm then adds a learned bias, too.
    weights: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class QkNorm:
    """An RMS norm of each head of the queries and of the keys."""

    #: Whether it follows the rotation by the position, or precedes it.
    after_rotation: bool
    epsilon: float | None = None
    #: Whether the result is multiplied by learned weights, which all heads share.
    weights: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ValueGate:
    """Value embeddings: every second layer, counted back from the last, adds an embedding of the token to its values.

    It is scaled by one gate for each key-value head: `scale * sigmoid(w . h)`, h being the first `width` channels of
    the layer's normed input.
    """

    width: int
    scale: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """A model. The constructor raises ValueError if a value is wrong, and names it."""

    #: The name of the architecture, such as `nanochat` or `llama`. It is shown, and decides nothing.
    family: str
    #: nanochat's architecture era, `E1a` to `E7`; None: the model is not from nanochat's own files.
    era: str | None = None

    #: The context: the longest sequence, prompt and answer together, in tokens.
    sequence_len: int
    #: Number of ids, which are 0 to vocab_size - 1.
    vocab_size: int
    #: Rows of the embedding and of the head: `vocab_size`, or more if the trainer padded them.
    rows: int
    n_layer: int
    n_head: int
    n_kv_head: int
    n_embd: int
    #: Number of channels of a head.
    head_dim: int
    #: Number of hidden values of the MLP.
    n_hidden: int

    #: The norm before attention, before the MLP, and before the head.
    norm: Norm
    #: Whether the embedding passes an RMS norm without weights, with the epsilon of `norm`.
    embedding_norm: bool = False
    activation: Activation
    #: Whether the MLP multiplies its activated values by those of a second matrix.
    gated: bool = False
    qkv_bias: bool = False
    attention_out_bias: bool = False
    mlp_bias: bool = False
    #: Whether the head uses the matrix of the embedding.
    tied_head: bool = False

    #: How queries and keys are rotated by their position; None: not at all.
    rope: Rope | None = None
    #: For each layer, whether it rotates.
    rope_layers: tuple[bool, ...]
    #: Whether an embedding of the position is added to that of the token, after norm and smear.
    learned_positions: bool = False
    qk_norm: QkNorm | None = None
    #: Factor of the dot product of a query and a key.
    attention_scale: float
    #: For each layer, how many keys a query attends to in addition to the one of its own position.
    windows: tuple[int, ...]
    #: Logits are `softcap * tanh(raw / softcap)`; None: they are not capped.
    softcap: float | None = None

    # Parts that only some eras of nanochat have.

    #: Whether the residual stream is mixed with the embedding before each layer, with two factors for each layer.
    residual_mix: bool = False
    value_gate: ValueGate | None = None
    #: Number of channels of an embedding that the smear gate reads; 0: neither smear nor backout. Smear adds to each
    #: embedding a part of the one before it. Backout takes the stream in the middle of the layers and subtracts a part
    #: of it after the last layer.
    smear_width: int = 0

    def __post_init__(self) -> None:
        for name, limit in LIMITS.items():
            value = getattr(self, name)
            if type(value) is not int or not 1 <= value <= limit:
                raise ValueError(f"{name} is {value!r}, which is not an integer between 1 and {limit}")
        if self.rows < self.vocab_size:
            raise ValueError(f"the embedding has {self.rows} rows, fewer than vocab_size {self.vocab_size}")
        if self.n_head % self.n_kv_head:
            raise ValueError(f"n_head {self.n_head} cannot be divided among n_kv_head {self.n_kv_head}")
        if self.rope is not None and 2 * len(self.rope.frequencies) != self.head_dim:
            raise ValueError(
                f"a head has {self.head_dim} channels; rotary positions need an even count, and a frequency for each "
                f"pair, not {len(self.rope.frequencies)}"
            )
        widest = max(0 if self.value_gate is None else self.value_gate.width, self.smear_width)
        if self.n_embd < widest:
            raise ValueError(f"n_embd {self.n_embd} is less than the {widest} channels that the gates of its era read")
        if self.softcap is not None and not 0 < self.softcap < math.inf:
            raise ValueError(f"softcap is {self.softcap!r}, which is not a finite number above 0")
        if len(self.windows) != self.n_layer or len(self.rope_layers) != self.n_layer:
            raise ValueError(f"windows and rope_layers need an entry for each of the {self.n_layer} layers")
        if min(self.windows) < 0:
            raise ValueError("a window is negative")

    @property
    def q_dim(self) -> int:
        """Number of channels of the queries of a layer."""
        return self.n_head * self.head_dim

    @property
    def kv_dim(self) -> int:
        """Number of channels of the keys of a layer, and of its values."""
        return self.n_kv_head * self.head_dim

    def has_value_embedding(self, layer: int) -> bool:
        """Whether `layer` adds a value embedding: every second layer does, counted back from the last."""
        return self.value_gate is not None and layer % 2 == (self.n_layer - 1) % 2

    def rotates(self, layer: int) -> bool:
        """Whether `layer` rotates its queries and keys."""
        return self.rope is not None and self.rope_layers[layer]
