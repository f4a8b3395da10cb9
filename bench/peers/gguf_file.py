"""Writes a Hugging Face folder as a GGUF file for llama.cpp, without a tokenizer.

This module runs in the environment of the peer `llama.cpp` and imports only gguf, numpy and safetensors.
"""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import numpy as np
from gguf.quants import dequantize, quantize
from numpy.typing import NDArray
from safetensors import deserialize

#: llama.cpp's architectures by `model_type`. In all of them llama.cpp and transformers have the same matrices.
_ARCHITECTURES = {
    "llama": gguf.MODEL_ARCH.LLAMA,
    "mistral": gguf.MODEL_ARCH.LLAMA,
    "qwen2": gguf.MODEL_ARCH.QWEN2,
    "qwen3": gguf.MODEL_ARCH.QWEN3,
}
#: GGUF's types by the names of safetensors and by those of `--weights`.
_TYPES = {
    "F32": gguf.GGMLQuantizationType.F32,
    "F16": gguf.GGMLQuantizationType.F16,
    "BF16": gguf.GGMLQuantizationType.BF16,
    "bf16": gguf.GGMLQuantizationType.BF16,
    "int8": gguf.GGMLQuantizationType.Q8_0,
}


def write_gguf(folder: Path, path: Path, weights: str) -> list[str]:
    """Write the model of `folder` to `path`, with matrices of the form `weights`. Returns GGUF's types of its tensors.

    `exact` keeps the bits of the folder. Raises ValueError if the model is of another family or has scaled positions.
    """
    config = json.loads((folder / "config.json").read_text())
    family = config["model_type"]
    rope = config.get("rope_parameters") or {"rope_theta": config.get("rope_theta", 10_000.0)}
    if family not in _ARCHITECTURES or rope.get("rope_type", "default") != "default":
        raise ValueError(f"the bench writes GGUF files of {', '.join(_ARCHITECTURES)} without scaled positions only")
    architecture = _ARCHITECTURES[family]
    layers, heads = config["num_hidden_layers"], config["num_attention_heads"]
    head_dim = config.get("head_dim") or config["hidden_size"] // heads
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[architecture])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(layers)
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_dimension_count(head_dim)
    writer.add_rope_freq_base(rope["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("no_vocab")
    names = gguf.get_tensor_name_map(architecture, layers)
    types = set()
    for file in sorted(folder.glob("*.safetensors")):
        for name, tensor in deserialize(file.read_bytes()):
            stored = np.frombuffer(tensor["data"], np.uint8)
            values = dequantize(stored, _TYPES[tensor["dtype"]]).reshape(tensor["shape"])
            if architecture is gguf.MODEL_ARCH.LLAMA and name.endswith(("q_proj.weight", "k_proj.weight")):
                values = _interleaved(values, head_dim)
            # llama.cpp keeps vectors in fp32.
            kind = "F32" if values.ndim == 1 else tensor["dtype"] if weights == "exact" else weights
            data = quantize(values, _TYPES[kind])
            gguf_name = names.get_name(name, (".weight", ".bias"))
            if gguf_name is None:
                raise ValueError(f"llama.cpp has no tensor like {name}")
            writer.add_tensor(gguf_name, data, raw_dtype=_TYPES[kind])
            types.add(_TYPES[kind].name)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return sorted(types)


def _interleaved(matrix: NDArray[np.float32], head_dim: int) -> NDArray[np.float32]:
    """Put the two channels of each pair side by side, as llama.cpp rotates them. Folders have them in two halves."""
    rows, columns = matrix.shape
    return matrix.reshape(rows // head_dim, 2, head_dim // 2, columns).swapaxes(1, 2).reshape(rows, columns)
