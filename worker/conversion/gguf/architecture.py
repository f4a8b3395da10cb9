"""What a GGUF file says about its model: Hugging Face's configuration, and the places of the tensors.

llama.cpp's names: https://github.com/ggml-org/llama.cpp/blob/master/gguf-py/gguf/constants.py
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from worker.checkpoints.errors import listed
from worker.conversion.gguf.file import GgufFile
from worker.conversion.gguf.places import Place, Sizes, gpt2_places, llama_places
from worker.conversion.gguf.rope import FREQUENCY_FACTORS, rope_scaling

#: The architectures by llama.cpp's names, and the classes of Hugging Face's transformers.
CLASSES = {
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "smollm3": "SmolLM3ForCausalLM",
    "gpt2": "GPT2LMHeadModel",
}
#: SmolLM3 uses no positions in every layer of this number. The file does not say so.
_NO_ROPE_INTERVAL = 4
#: Keys that are read, or that do not change what the model computes. Any other key of the architecture may change it.
_UNDERSTOOD = {
    *("block_count", "context_length", "embedding_length", "feed_forward_length", "vocab_size", "tensor_data_layout"),
    *("expert_count", "expert_used_count", "use_parallel_residual"),
    *("attention.head_count", "attention.head_count_kv", "attention.key_length", "attention.value_length"),
    *("attention.layer_norm_epsilon", "attention.layer_norm_rms_epsilon"),
    *("attention.sliding_window", "attention.causal"),
    *("rope.dimension_count", "rope.freq_base", "rope.scale_linear", "rope.scaling.type", "rope.scaling.factor"),
    *("rope.scaling.original_context_length", "rope.scaling.finetuned", "rope.scaling.attn_factor"),
    *("rope.scaling.yarn_attn_factor", "rope.scaling.yarn_ext_factor", "rope.scaling.yarn_log_multiplier"),
    *("rope.scaling.yarn_beta_fast", "rope.scaling.yarn_beta_slow"),
}
_EMBEDDING, _HEAD = "token_embd.weight", "output.weight"
#: Rows that are compared at once.
_ROWS = 1024


@dataclass(frozen=True, slots=True)
class Architecture:
    """A model of a file."""

    #: The content of `config.json` without the ids of special tokens and the type of the numbers.
    config: dict[str, Any]
    places: tuple[Place, ...]

    @property
    def context(self) -> int:
        """The longest sequence, in tokens."""
        length: int = self.config.get("max_position_embeddings") or self.config["n_positions"]
        return length


def read_architecture(file: GgufFile) -> Architecture:
    """Read and check the metadata and the names and shapes of all tensors. Raises CheckpointError."""
    if (kind := file.text("general.type")) not in (None, "model"):
        raise file.error(f"holds a {kind} (general.type), not a model")
    if (parts := file.integer("split.count")) not in (None, 0, 1):
        raise file.error(f"is one of {parts} parts of a model: join them with `llama-gguf-split --merge`")
    architecture = file.text("general.architecture")
    if architecture is None:
        raise file.error("has no general.architecture")
    if "moe" in architecture or file.integer(f"{architecture}.expert_count"):
        raise file.error(f"is a mixture of experts ({architecture}), which is not supported")
    if architecture not in CLASSES:
        raise file.error(f"is of architecture {architecture}, which is not supported: {', '.join(CLASSES)} are")
    reader = _Reader(file, architecture)
    found = reader.gpt2() if architecture == "gpt2" else reader.llama_like()
    _check_tensors(file, found.places)
    return found


class _Reader:
    """Reads the metadata of one architecture."""

    def __init__(self, file: GgufFile, architecture: str) -> None:
        self._file = file
        self._architecture = architecture
        self._refuse_unknown_keys()
        table = file.tensors.get(_EMBEDDING)
        if table is None or len(table.shape) != 2:
            raise file.error(f"has no matrix {_EMBEDDING}")
        width, heads = self._size("embedding_length"), self._size("attention.head_count")
        if width % heads:
            raise file.error(f"its width {width} cannot be divided among {heads} heads")
        layers = self._size("block_count")
        # Names of tensors are made for each layer: a damaged number must not make billions.
        if layers > len(file.tensors):
            raise file.error(f"its metadata has {layers} layers, and the file only {len(file.tensors)} tensors")
        self._sizes = Sizes(
            rows=table.shape[0],
            layers=layers,
            width=width,
            inner=self._size("feed_forward_length"),
            context=self._size("context_length"),
            heads=heads,
            kv_heads=self._size("attention.head_count_kv", default=heads),
            head_dim=self._head_dim(width // heads),
            tied=self._is_tied(),
        )

    def gpt2(self) -> Architecture:
        sizes = self._sizes
        config = {
            "architectures": [CLASSES["gpt2"]],
            "model_type": "gpt2",
            "vocab_size": sizes.rows,
            "n_positions": sizes.context,
            "n_embd": sizes.width,
            "n_layer": sizes.layers,
            "n_head": sizes.heads,
            "n_inner": sizes.inner,
            "activation_function": "gelu_new",
            "layer_norm_epsilon": self._number("attention.layer_norm_epsilon"),
            "tie_word_embeddings": sizes.tied,
        }
        return Architecture(config, tuple(gpt2_places(sizes)))

    def llama_like(self) -> Architecture:
        file, architecture, sizes = self._file, self._architecture, self._sizes
        head_dim = sizes.head_dim
        base = self._number("rope.freq_base", default=10_000.0)
        window = file.integer(f"{architecture}.attention.sliding_window")
        model_type = architecture
        config: dict[str, Any] = {
            "vocab_size": sizes.rows,
            "hidden_size": sizes.width,
            "intermediate_size": sizes.inner,
            "num_hidden_layers": sizes.layers,
            "num_attention_heads": sizes.heads,
            "num_key_value_heads": sizes.kv_heads,
            "hidden_act": "silu",
            "max_position_embeddings": sizes.context,
            "rms_norm_eps": self._number("attention.layer_norm_rms_epsilon"),
            "rope_theta": base,
            "rope_scaling": rope_scaling(file, architecture, head_dim=head_dim, base=base),
            "tie_word_embeddings": sizes.tied,
        }
        attention_bias = "blk.0.attn_q.bias" in file.tensors
        mlp_bias = "blk.0.ffn_up.bias" in file.tensors
        if window:
            if architecture != "llama":
                raise file.error(f"its {architecture}.attention.sliding_window is not supported")
            model_type = "mistral"
            config |= {"head_dim": head_dim, "sliding_window": window}
            attention_bias = mlp_bias = False
        elif architecture == "llama":
            config |= {"head_dim": head_dim, "attention_bias": attention_bias, "mlp_bias": mlp_bias}
        elif architecture == "qwen3":
            config |= {"head_dim": head_dim, "attention_bias": attention_bias, "use_sliding_window": False}
            mlp_bias = False
        elif architecture == "qwen2":
            config["use_sliding_window"] = False
            attention_bias, mlp_bias = True, False
        else:
            config |= {
                "attention_bias": attention_bias,
                "mlp_bias": mlp_bias,
                "no_rope_layer_interval": _NO_ROPE_INTERVAL,
                "no_rope_layers": [int((i + 1) % _NO_ROPE_INTERVAL != 0) for i in range(sizes.layers)],
                "use_sliding_window": False,
            }
        if architecture in ("qwen2", "smollm3") and head_dim * sizes.heads != sizes.width:
            raise file.error(f"its heads have {head_dim} channels; {sizes.width // sizes.heads} is supported here")
        name = "MistralForCausalLM" if model_type == "mistral" else CLASSES[architecture]
        places = llama_places(sizes, architecture, attention_bias=attention_bias, mlp_bias=mlp_bias)
        return Architecture({"architectures": [name], "model_type": model_type, **config}, tuple(places))

    def _head_dim(self, usual: int) -> int:
        head_dim = self._size("attention.key_length", default=usual)
        if (values := self._size("attention.value_length", default=head_dim)) != head_dim:
            raise self._file.error(f"its heads have {head_dim} channels for keys and {values} for values")
        if (rotated := self._size("rope.dimension_count", default=head_dim)) != head_dim:
            raise self._file.error(
                f"it rotates {rotated} of {head_dim} channels ({self._architecture}.rope.dimension_count), which is "
                "not supported"
            )
        if head_dim % 2:
            raise self._file.error(f"its heads have {head_dim} channels; rotary positions need an even count")
        return head_dim

    def _size(self, key: str, *, default: int | None = None) -> int:
        value = self._file.integer(f"{self._architecture}.{key}")
        value = default if value is None else value
        if value is None or value < 1:
            raise self._file.error(f"its {self._architecture}.{key} is {'missing' if value is None else value}")
        return value

    def _number(self, key: str, *, default: float | None = None) -> float:
        value = self._file.number(f"{self._architecture}.{key}")
        value = default if value is None else value
        if value is None or not 0 < value < float("inf"):
            raise self._file.error(f"its {self._architecture}.{key} is {'missing' if value is None else value}")
        return value

    def _is_tied(self) -> bool:
        """Whether the embedding is the head as well. Some files have it twice."""
        table, head = (self._file.tensors.get(name) for name in (_EMBEDDING, _HEAD))
        if table is None or head is None:
            return True
        if (table.format, table.shape) != (head.format, head.shape):
            return False
        # In parts, for the comparison of two arrays makes a third one.
        parts = (slice(begin, begin + _ROWS) for begin in range(0, table.shape[0], _ROWS))
        return all(np.array_equal(table.data[part], head.data[part]) for part in parts)

    def _refuse_unknown_keys(self) -> None:
        prefix = f"{self._architecture}."
        own = {key.removeprefix(prefix) for key in self._file.metadata_keys() if key.startswith(prefix)}
        if unknown := sorted(own - _UNDERSTOOD):
            raise self._file.error(f"has parameters that are not supported: {listed(prefix + key for key in unknown)}")
        if self._file.flag(f"{prefix}attention.causal") is False:
            raise self._file.error("is a model that sees later tokens, which cannot generate text (attention.causal)")


def _check_tensors(file: GgufFile, places: tuple[Place, ...]) -> None:
    """Raise CheckpointError if a tensor is missing, left over, or of another shape."""
    expected = {place.source: place for place in places}
    if missing := [name for name in expected if name not in file.tensors]:
        raise file.error(f"lacks tensors that its metadata requires: {listed(missing)}")
    # A head that equals the embedding is not written again, and divisors of frequencies are in the configuration.
    left_over = file.tensors.keys() - expected.keys() - {_HEAD, FREQUENCY_FACTORS}
    if left_over:
        raise file.error(f"has tensors that no supported model has: {listed(sorted(left_over))}")
    for name, place in expected.items():
        if file.tensors[name].shape != place.shape:
            raise file.error(f"tensor {name} has shape {file.tensors[name].shape}; its metadata requires {place.shape}")
