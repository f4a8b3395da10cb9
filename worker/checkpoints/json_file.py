"""Reads JSON files of a checkpoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from worker.checkpoints.errors import CheckpointError
from worker.checkpoints.regular_file import GIT_LFS, IS_POINTER, read_bytes

#: The largest JSON file that is read, in bytes. Meta files have some thousand.
MAX_JSON_BYTES = 16 << 20
#: The longest value that a message quotes, in characters.
_MAX_SHOWN = 60


def read_object(path: Path, error: type[CheckpointError] = CheckpointError) -> dict[str, Any]:
    """The object in a JSON file. Raises `error`."""
    text = read_bytes(path, MAX_JSON_BYTES, error)
    if text.startswith(GIT_LFS):
        raise error(path, IS_POINTER)
    try:
        content = json.loads(text.decode())
    # RecursionError: arrays or objects are nested too deeply.
    except (ValueError, RecursionError) as cause:
        raise error(path, f"is not valid JSON: {cause}") from cause
    if not isinstance(content, dict):
        raise error(path, "is not a JSON object")
    return content


def short(value: object) -> str:
    """A value as JSON, cut to a length that fits into a message."""
    try:
        text = json.dumps(value)
    except (RecursionError, ValueError):
        return "a value that is too large"
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}..."
