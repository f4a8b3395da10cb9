"""Reads JSON files of a checkpoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from worker.checkpoints.errors import CheckpointError


def read_object(path: Path, error: type[CheckpointError] = CheckpointError) -> dict[str, Any]:
    """The object in a JSON file. Raises `error`."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as cause:
        raise error(path, f"cannot be read: {cause.strerror}") from cause
    # RecursionError: arrays or objects are nested too deeply.
    except (ValueError, RecursionError) as cause:
        raise error(path, f"is not valid JSON: {cause}") from cause
    if not isinstance(content, dict):
        raise error(path, "is not a JSON object")
    return content
