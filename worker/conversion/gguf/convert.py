"""Converts a GGUF file into a folder of Hugging Face."""

from __future__ import annotations

from pathlib import Path

from worker.conversion.gguf.architecture import read_architecture
from worker.conversion.gguf.file import GgufFile
from worker.conversion.gguf.tokenizer import read_tokenizer
from worker.conversion.gguf.weights import plan_tensors
from worker.conversion.model_folder import ModelFolder

_NAMES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def read_gguf(path: Path, *, exact: bool = False) -> ModelFolder:
    """The model of a GGUF file, checked; its tensors are read when they are written. Raises CheckpointError.

    `exact`: whether quantised matrices become fp32 instead of bf16.
    """
    file = GgufFile(path)
    architecture = read_architecture(file)
    tensors = plan_tensors(file, architecture.places, exact=exact)
    rows: int = architecture.config["vocab_size"]
    tokenizer = read_tokenizer(file, rows=rows, context=architecture.context)
    matrices = next(tensor.format for tensor in tensors if len(tensor.shape) == 2)
    return ModelFolder(
        config={**architecture.config, **tokenizer.ids, "dtype": _NAMES[matrices]},
        generation_config={name: value for name, value in tokenizer.ids.items() if value is not None},
        tokenizer=tokenizer.content,
        tokenizer_config=tokenizer.config,
        chat_template=tokenizer.chat_template,
        tensors=tuple(tensors),
    )
