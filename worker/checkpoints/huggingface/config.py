"""`config.json` of a folder in Hugging Face's form: its values, its family, and its sizes. Free of torch."""

from __future__ import annotations

from pathlib import Path

from worker.checkpoints.huggingface.families import FAMILIES, MISSING, Family
from worker.checkpoints.huggingface.values import Values
from worker.checkpoints.json_file import read_object, short
from worker.engine.architecture.config import LIMITS


def read(path: Path) -> Values:
    """Read a `config.json`. Its keys have the defaults of the family that it names. Raises CheckpointError."""
    values = Values(path, read_object(path), {})
    return Values(path, values.content, family_of(values).defaults)


def sizes(values: Values) -> tuple[int, int]:
    """The number of ids of the model, and its context. Raises CheckpointError."""
    context = sized(values, family_of(values), "max_position_embeddings", "sequence_len")
    return size(values, "vocab_size", "vocab_size"), context


def family_of(values: Values) -> Family:
    """The family that a `config.json` names. Raises CheckpointError for others, which says what is missing."""
    kind = values.get("model_type")
    if kind is None:
        raise values.error("model_type", "is missing; it names the family of the model")
    if isinstance(kind, str) and kind in FAMILIES:
        return FAMILIES[kind]
    missing = next((what for parts, what in MISSING if any(part in str(kind)[:100] for part in parts)), None)
    why = "" if missing is None else f" (it needs {missing})"
    raise values.error(
        "model_type", f"is {short(kind)}, which is not supported{why}; supported are {', '.join(FAMILIES)}"
    )


def size(values: Values, key: str, name: str) -> int:
    """A size, within the limits of `ModelConfig`, which calls it `name`. Raises CheckpointError."""
    return values.integer(key, most=LIMITS[name])


def sized(values: Values, family: Family, usual: str, name: str) -> int:
    """The size under the family's own name of a usual key. Raises CheckpointError."""
    return size(values, family.keys.get(usual, usual), name)
