"""Writes nanochat's checkpoints of era E1 as Hugging Face's NanoChat.

That class is nanochat as it was in 2025. Later eras have parts that it lacks.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from worker.checkpoints.checkpoint import Weights
from worker.checkpoints.errors import CheckpointError
from worker.checkpoints.folder import CheckpointFolder
from worker.checkpoints.formats import load
from worker.checkpoints.tokenizers import Tokenizer, load_tokenizer
from worker.checkpoints.tokenizers.export import ExportedTokenizer
from worker.conversion.model_folder import ModelFolder
from worker.conversion.safetensors_writer import NumberFormat, PlannedTensor
from worker.engine.architecture.config import ModelConfig
from worker.engine.architecture.era import E1A, E1B, ERAS

#: The matrices of a layer by nanochat's names, and Hugging Face's names.
_NAMES = {
    "attn.c_q": "self_attn.q_proj",
    "attn.c_k": "self_attn.k_proj",
    "attn.c_v": "self_attn.v_proj",
    "attn.c_proj": "self_attn.o_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
_FORMATS: dict[torch.dtype, NumberFormat] = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}


def read_nanochat(folder: CheckpointFolder, *, softcap: float | None = None) -> ModelFolder:
    """The model of a checkpoint, checked; its tensors are read when they are written. Raises CheckpointError.

    `softcap` replaces that of the era.
    """
    checkpoint = load(folder, softcap=softcap)
    config = checkpoint.config
    if config.era is None:
        raise CheckpointError(folder.path, "is a folder of Hugging Face already")
    if lacking := _lacking(config):
        raise CheckpointError(
            folder.path,
            f"is of era {config.era}, which cannot be exported: Hugging Face's NanoChat is nanochat of era "
            f"{E1A.name} and {E1B.name}, and has no {', no '.join(lacking)}",
        )
    tokenizer = load_tokenizer(folder, config.vocab_size)
    exported = ExportedTokenizer.of(tokenizer, context=config.sequence_len)
    ids = _special_ids(tokenizer)
    weights = checkpoint.weights
    dtypes = {tensor.dtype for tensor in weights.tensors.values()}
    # Trainers on a GPU save the embedding as bf16, and the rest as fp32, which holds all of bf16 and fp16.
    dtype = dtypes.pop() if len(dtypes) == 1 else torch.float32
    return ModelFolder(
        config={**_config(config), **ids, "dtype": str(dtype).removeprefix("torch.")},
        generation_config={name: value for name, value in ids.items() if value is not None},
        tokenizer=exported.tokenizer,
        tokenizer_config={name: value for name, value in exported.config.items() if name != "chat_template"},
        chat_template=exported.config.get("chat_template"),
        tensors=tuple(
            _planned(weights, source, name, dtype, rows=config.vocab_size if "layers" not in name else None)
            for source, name in _names(config)
        ),
    )


def _lacking(config: ModelConfig) -> list[str]:
    """What the model has and Hugging Face's class lacks."""
    parts = {
        "factors of the residual stream (resid_lambdas, x0_lambdas)": config.residual_mix,
        "sliding windows": min(config.windows) < config.sequence_len,
        "value embeddings": config.value_gate is not None,
        "factor of queries and keys": config.attention_scale != 1 / math.sqrt(config.head_dim),
        "smear and backout": config.smear_width > 0,
    }
    return [name for name, has_it in parts.items() if has_it]


def _config(config: ModelConfig) -> dict[str, object]:
    assert config.era is not None
    return {
        "architectures": ["NanoChatForCausalLM"],
        "model_type": "nanochat",
        # Rows after the last id are padding, and must never be drawn.
        "vocab_size": config.vocab_size,
        "hidden_size": config.n_embd,
        "intermediate_size": config.n_hidden,
        "num_hidden_layers": config.n_layer,
        "num_attention_heads": config.n_head,
        "num_key_value_heads": config.n_kv_head,
        "max_position_embeddings": config.sequence_len,
        "hidden_act": "relu2",
        # nanochat's is the one of the number format. This is that of fp32.
        "rms_norm_eps": torch.finfo(torch.float32).eps,
        "rope_parameters": {"rope_type": "default", "rope_theta": ERAS[config.era].rope_base},
        "final_logit_softcapping": config.softcap,
        "attention_bias": False,
        "tie_word_embeddings": False,
    }


def _special_ids(tokenizer: Tokenizer) -> dict[str, int | list[int] | None]:
    eos_id = tokenizer.card().eos_id
    ends = sorted(tokenizer.stop_ids, key=lambda token_id: (token_id != eos_id, token_id))
    return {
        "bos_token_id": tokenizer.bos_id,
        "eos_token_id": ends[0] if len(ends) == 1 else ends or None,
        "pad_token_id": tokenizer.bos_id if eos_id is None else eos_id,
    }


def _names(config: ModelConfig) -> Iterator[tuple[str, str]]:
    """nanochat's and Hugging Face's name of each tensor."""
    yield "transformer.wte.weight", "model.embed_tokens.weight"
    yield "lm_head.weight", "lm_head.weight"
    for i in range(config.n_layer):
        for source, name in _NAMES.items():
            yield f"transformer.h.{i}.{source}.weight", f"model.layers.{i}.{name}.weight"


def _planned(weights: Weights, source: str, name: str, dtype: torch.dtype, *, rows: int | None) -> PlannedTensor:
    """`rows`: the number of rows that are written; None: all."""
    shape = weights.tensors[source].shape

    def parts() -> Iterator[memoryview]:
        tensor: Tensor = weights[source][:rows].to(dtype).contiguous()
        yield tensor.view(torch.uint8).numpy().data

    return PlannedTensor(name, _FORMATS[dtype], (shape[0] if rows is None else rows, *shape[1:]), parts)
