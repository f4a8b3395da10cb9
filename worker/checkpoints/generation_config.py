"""What the files of a Hugging Face model say about generation: which ids end a text, and how to sample by default.

The files are `generation_config.json`, which may be missing, and `config.json`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.sampling_params import SAMPLING_FIELDS
from worker.checkpoints.errors import TokenizerError
from worker.checkpoints.huggingface_files import CONFIG, checked
from worker.checkpoints.json_file import read_object, short

GENERATION_CONFIG_NAME = "generation_config.json"

#: The sampling fields that are used, with the value that changes nothing.
_NEUTRAL: Mapping[str, float | None] = {
    "temperature": 1.0,
    "top_k": None,
    "top_p": 1.0,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
}
#: The largest number of ids that a file may name.
_MAX_STOP_IDS = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationConfig:
    """Defaults of a model."""

    #: Ids that end a text.
    stop_ids: frozenset[int]
    #: Sampling fields by their names, without those that change nothing.
    sampling: Mapping[str, float]

    @classmethod
    def read(cls, folder: Path, vocab_size: int) -> GenerationConfig:
        """Read the files in a folder. Raises CheckpointError, as a rule a TokenizerError that names file and field."""
        stop_ids: set[int] = set()
        sampling: dict[str, float] = {}
        for name in (GENERATION_CONFIG_NAME, CONFIG):
            path = folder / name
            content = read_object(checked(path), TokenizerError) if path.is_file() else {}
            try:
                stop_ids |= _stop_ids(content, vocab_size)
                if name == GENERATION_CONFIG_NAME:
                    sampling = _sampling(content, vocab_size)
            except ValueError as error:
                raise TokenizerError(path, str(error)) from error
        return cls(stop_ids=frozenset(stop_ids), sampling=sampling)


def _stop_ids(content: Mapping[str, Any], vocab_size: int) -> set[int]:
    """`eos_token_id`: an id, a list of ids, or null. Raises ValueError, with the reason."""
    found = content.get("eos_token_id")
    ids = found if isinstance(found, list) else [] if found is None else [found]
    if len(ids) > _MAX_STOP_IDS:
        raise ValueError(f"its `eos_token_id` has {len(ids)} ids, more than {_MAX_STOP_IDS}")
    for one in ids:
        if type(one) is not int:
            raise ValueError(f"its `eos_token_id` must be a token id or a list of them, and {short(one)} is none")
        if not 0 <= one < vocab_size:
            raise ValueError(f"its `eos_token_id` {one} is not one of the model's ids, which are 0 to {vocab_size - 1}")
    return set(ids)


def _sampling(content: Mapping[str, Any], vocab_size: int) -> dict[str, float]:
    """The sampling fields that change something. Raises ValueError, with the reason."""
    sampling: dict[str, float] = {}
    for one in SAMPLING_FIELDS:
        value = content.get(one.name)
        if one.name not in _NEUTRAL or value is None:
            continue
        if _is_no_number(value):
            raise ValueError(f"its `{one.name}` must be a number, not {short(value)}")
        if value == _NEUTRAL[one.name]:
            continue
        if one.name == "top_k":
            # Numbers below 1 turn it off, and one for each id changes nothing.
            if not 1 <= value < vocab_size:
                continue
            if value != int(value):
                raise ValueError(f"its `top_k` must be a whole number, not {value}")
            value = int(value)
        if not one.bounds.contain(value):
            raise ValueError(f"its `{one.name}` is {value}, which no request may have: change it, or remove it")
        sampling[one.name] = value
    return sampling


def _is_no_number(value: Any) -> bool:
    # JSON has no NaN and no infinity, but Python reads them.
    return isinstance(value, bool) or not isinstance(value, int | float) or value != value or abs(value) == math.inf
