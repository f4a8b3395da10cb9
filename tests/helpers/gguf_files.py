"""Writes GGUF files as llama.cpp's converter does, from reference folders or with parts changed."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gguf import (
    GGML_QUANT_SIZES,
    MODEL_ARCH_NAMES,
    GGMLQuantizationType,
    GGUFValueType,
    GGUFWriter,
    dequantize,
    get_tensor_name_map,
    quantize,
)

#: llama.cpp's names of types of tokens.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
_DTYPES = {"F32": np.float32, "F16": np.float16, "BF16": np.uint16}
_TYPES = {"F32": GGMLQuantizationType.F32, "F16": GGMLQuantizationType.F16, "BF16": GGMLQuantizationType.BF16}
_INTERLEAVED = ("llama", "mistral", "smollm3")


def read_safetensors(path: Path) -> dict[str, tuple[str, np.ndarray]]:
    """The tensors of a file: type and content; bf16 as uint16."""
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    header.pop("__metadata__", None)
    tensors = {}
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        content = np.frombuffer(data[8 + size + begin : 8 + size + end], dtype=_DTYPES[entry["dtype"]])
        tensors[name] = (entry["dtype"], content.reshape(entry["shape"]))
    return tensors


def read_weights(folder: Path) -> dict[str, tuple[str, np.ndarray]]:
    """The tensors of a folder."""
    return {name: one for file in folder.glob("*.safetensors") for name, one in read_safetensors(file).items()}


@dataclass
class GgufFile:
    """The content of a file, which a test may change before it is written."""

    architecture: str
    #: Keys that begin with a dot belong to the architecture. None: the key is left out.
    metadata: dict[str, Any]
    #: Type and content; quantised content is as `gguf.quantize` returns it.
    tensors: dict[str, tuple[GGMLQuantizationType, np.ndarray]]

    def write(self, path: Path) -> Path:
        """Write the file. Returns its path."""
        writer = GGUFWriter(path, self.architecture)
        for key, value in self.metadata.items():
            key = f"{self.architecture}{key}" if key.startswith(".") else key
            if value is not None:
                writer.add_key_value(key, value, *_value_type(value))
        for name, (kind, content) in self.tensors.items():
            writer.add_tensor(name, content, raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path

    def quantized(self, kind: GGMLQuantizationType) -> GgufFile:
        """The same with quantised matrices, where the blocks of the type fit."""
        size = GGML_QUANT_SIZES[kind][0]
        tensors = {
            name: (kind, quantize(as_fp32(*one), kind))
            if one[1].ndim == 2 and as_fp32(*one).shape[1] % size == 0
            else one
            for name, one in self.tensors.items()
        }
        return GgufFile(self.architecture, dict(self.metadata), tensors)


def _value_type(value: Any) -> tuple[GGUFValueType, GGUFValueType | None]:
    if isinstance(value, list):
        return GGUFValueType.ARRAY, _value_type(value[0])[0]
    kinds = {
        bool: GGUFValueType.BOOL,
        int: GGUFValueType.INT32,
        float: GGUFValueType.FLOAT32,
        str: GGUFValueType.STRING,
    }
    return kinds[type(value)], None


def as_fp32(kind: GGMLQuantizationType, content: np.ndarray) -> np.ndarray:
    """The values of a tensor."""
    return dequantize(content, kind)


def of_folder(folder: Path) -> GgufFile:
    """What llama.cpp's converter makes of a folder of Hugging Face with a byte-level tokenizer."""
    config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    family = config["model_type"]
    architecture = "llama" if family == "mistral" else family
    metadata = {**(_gpt2_metadata(config) if family == "gpt2" else _llama_metadata(config)), **_tokenizer(folder)}
    return GgufFile(architecture, metadata, _tensors(folder, config, architecture))


def _gpt2_metadata(config: Mapping[str, Any]) -> dict[str, Any]:
    return {
        ".block_count": config["n_layer"],
        ".context_length": config["n_positions"],
        ".embedding_length": config["n_embd"],
        ".feed_forward_length": 4 * config["n_embd"],
        ".attention.head_count": config["n_head"],
        ".attention.layer_norm_epsilon": config["layer_norm_epsilon"],
    }


def _llama_metadata(config: Mapping[str, Any]) -> dict[str, Any]:
    metadata = {
        ".block_count": config["num_hidden_layers"],
        ".context_length": config["max_position_embeddings"],
        ".embedding_length": config["hidden_size"],
        ".feed_forward_length": config["intermediate_size"],
        ".attention.head_count": config["num_attention_heads"],
        ".attention.head_count_kv": config["num_key_value_heads"],
        ".attention.layer_norm_rms_epsilon": config["rms_norm_eps"],
        ".rope.freq_base": config["rope_parameters"]["rope_theta"],
    }
    if "head_dim" in config:
        metadata |= {".attention.key_length": config["head_dim"], ".attention.value_length": config["head_dim"]}
    if config["model_type"] in _INTERLEAVED:
        heads = config["num_attention_heads"]
        metadata |= {
            ".vocab_size": config["vocab_size"],
            ".rope.dimension_count": config.get("head_dim") or config["hidden_size"] // heads,
        }
    if config["model_type"] == "mistral":
        metadata[".attention.sliding_window"] = config["sliding_window"]
    return metadata


def _tensors(
    folder: Path, config: Mapping[str, Any], architecture: str
) -> dict[str, tuple[GGMLQuantizationType, np.ndarray]]:
    kinds = {name: kind for kind, name in MODEL_ARCH_NAMES.items()}
    layers: int = config.get("num_hidden_layers") or config["n_layer"]
    names = get_tensor_name_map(kinds[architecture], layers)
    tensors = {}
    for name, (kind, content) in read_weights(folder).items():
        own = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert own is not None, name
        if config["model_type"] in _INTERLEAVED and ("q_proj" in name or "k_proj" in name):
            heads = config["num_attention_heads" if "q_proj" in name else "num_key_value_heads"]
            content = _interleaved(content, heads)
        if architecture == "gpt2" and content.ndim == 2 and ".h." in name:
            content = content.T
        tensors[own] = _stored(kind, np.ascontiguousarray(content))
    rope = config.get("rope_parameters") or {}
    if rope.get("rope_type") == "llama3":
        factors = frequency_factors(rope, config["head_dim"])
        tensors["rope_freqs.weight"] = GGMLQuantizationType.F32, factors.astype(np.float32)
    return tensors


def _stored(kind: str, content: np.ndarray) -> tuple[GGMLQuantizationType, np.ndarray]:
    stored = content.view(np.uint8) if kind == "BF16" else content
    # llama.cpp's converter stores vectors as fp32.
    return (_TYPES[kind], stored) if content.ndim > 1 else (_TYPES["F32"], as_fp32(_TYPES[kind], stored))


def _interleaved(content: np.ndarray, heads: int) -> np.ndarray:
    """The rows of each head with the two channels of a rotation side by side, as llama.cpp has them."""
    return (
        content.reshape(heads, 2, content.shape[0] // heads // 2, *content.shape[1:])
        .swapaxes(1, 2)
        .reshape(content.shape)
    )


def frequency_factors(rope: Mapping[str, Any], head_dim: int) -> np.ndarray:
    """llama.cpp's divisors of the frequencies, for Llama 3's rule."""
    factors = []
    for channel in range(0, head_dim, 2):
        wave = 2 * math.pi * rope["rope_theta"] ** (channel / head_dim)
        low = rope["original_max_position_embeddings"] / rope["low_freq_factor"]
        high = rope["original_max_position_embeddings"] / rope["high_freq_factor"]
        if wave < high:
            factors.append(1.0)
        elif wave > low:
            factors.append(rope["factor"])
        else:
            smooth = (rope["original_max_position_embeddings"] / wave - rope["low_freq_factor"]) / (
                rope["high_freq_factor"] - rope["low_freq_factor"]
            )
            factors.append(1 / ((1 - smooth) / rope["factor"] + smooth))
    return np.array(factors)


def _tokenizer(folder: Path) -> dict[str, Any]:
    config = json.loads((folder / "config.json").read_text())
    content = json.loads((folder / "tokenizer.json").read_text())
    added = {token["id"]: token for token in content["added_tokens"]}
    names = {token_id: name for name, token_id in content["model"]["vocab"].items()}
    names |= {token_id: token["content"] for token_id, token in added.items()}
    tokens = [names.get(i, f"[PAD{i}]") for i in range(config["vocab_size"])]
    types = [
        (CONTROL if added[i]["special"] else USER_DEFINED) if i in added else NORMAL if i in names else UNUSED
        for i in range(len(tokens))
    ]
    ends = config["eos_token_id"]
    template = folder / "chat_template.jinja"
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.merges": [" ".join(merge) for merge in content["model"]["merges"]],
        "tokenizer.ggml.bos_token_id": config["bos_token_id"],
        "tokenizer.ggml.eos_token_id": ends[0] if isinstance(ends, list) else ends,
        "tokenizer.chat_template": template.read_text() if template.exists() else None,
    }
